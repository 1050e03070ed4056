/* SPDX-License-Identifier: Apache-2.0 */
/* Register, register again and de-register with AKAv1-MD5 (RFC 3310) through PJSIP; README.md says how to build it.
 *
 * akareg PCSCF REGISTRAR IMPI IMPU K OP AMF
 *
 * PCSCF and REGISTRAR are SIP URIs, K, OP and AMF hexadecimal. Each outcome is a line: what, and the status. 0 if all three are 200.
 */
#include <pjsua-lib/pjsua.h>
#include <stdio.h>
#include <string.h>

enum { STEP_SECONDS = 15 };
static const char *const STEPS[] = {"registered", "registered again", "de-registered"};
static volatile int status_of_step;

static void on_reg_state2(pjsua_acc_id account, pjsua_reg_info *info)
{
    PJ_UNUSED_ARG(account);
    status_of_step = info->cbparam->code ? info->cbparam->code : -1;
}

static int octets_of(const char *hex, char *octets, int size)
{
    int length = 0, value;

    for (; hex[0] && hex[1] && length < size; hex += 2) {
        if (sscanf(hex, "%2x", (unsigned *)&value) != 1)
            return -1;
        octets[length++] = (char)value;
    }
    return *hex ? -1 : length;
}

static int key(pj_str_t *to, const char *hex, char *octets, int size)
{
    to->ptr = octets;
    to->slen = octets_of(hex, octets, size);
    return to->slen == size;
}

static pj_status_t start(char *pcscf)
{
    pjsua_config config;
    pjsua_logging_config log;
    pjsua_media_config media;
    pjsua_transport_config transport;
    pj_status_t status;

    pjsua_config_default(&config);
    config.cb.on_reg_state2 = &on_reg_state2;
    config.outbound_proxy_cnt = 1; /* a proxy of the account would be gone once the 200 brought its Service-Route */
    config.outbound_proxy[0] = pj_str(pcscf);
    pjsua_logging_config_default(&log);
    log.level = log.console_level = 1;
    pjsua_media_config_default(&media);
    pjsua_transport_config_default(&transport);
    transport.bound_addr = pj_str("127.0.0.1");
    status = pjsua_init(&config, &log, &media);
    if (status == PJ_SUCCESS)
        status = pjsua_transport_create(strstr(pcscf, "transport=tcp") ? PJSIP_TRANSPORT_TCP : PJSIP_TRANSPORT_UDP, &transport, NULL);
    return status == PJ_SUCCESS ? pjsua_start() : status;
}

static int done_with(pjsua_acc_id id, int step)
{
    pj_status_t status;

    status_of_step = 0;
    /* Busy until the callback of the last one has returned. */
    while ((status = pjsua_acc_set_registration(id, step < 2 ? PJ_TRUE : PJ_FALSE)) == PJSIP_EBUSY)
        pj_thread_sleep(20);
    if (status != PJ_SUCCESS) {
        pjsua_perror("akareg", STEPS[step], status);
        return 0;
    }
    for (int turn = 0; turn < STEP_SECONDS * 50 && !status_of_step; turn++)
        pj_thread_sleep(20);
    printf("%s: %d\n", STEPS[step], status_of_step);
    fflush(stdout);
    return status_of_step == 200;
}

int main(int count, char **words)
{
    pjsua_acc_config account;
    pjsua_acc_id id = PJSUA_INVALID_ID;
    char k[16], op[16], amf[2];
    pjsip_cred_info *credentials;
    int done = 0;

    if (count != 8) {
        fprintf(stderr, "akareg PCSCF REGISTRAR IMPI IMPU K OP AMF\n");
        return 2;
    }
    pj_log_set_level(1);
    if (pjsua_create() != PJ_SUCCESS || start(words[1]) != PJ_SUCCESS)
        return 1;
    pjsua_acc_config_default(&account);
    account.id = pj_str(words[4]);
    account.reg_uri = pj_str(words[2]);
    account.allow_contact_rewrite = PJ_FALSE; /* it would register by itself once more */
    account.register_on_acc_add = PJ_FALSE;
    account.reg_timeout = 600;
    account.auth_pref.initial_auth = PJ_TRUE; /* TS 24.229: the first REGISTER names the private identity */
    account.cred_count = 1;
    credentials = &account.cred_info[0];
    credentials->realm = pj_str(strncmp(words[2], "sip:", 4) ? words[2] : words[2] + 4); /* the home domain */
    credentials->scheme = pj_str("Digest");
    credentials->username = pj_str(words[3]);
    credentials->data_type = PJSIP_CRED_DATA_EXT_AKA;
    credentials->ext.aka.cb = &pjsip_auth_create_aka_response;
    if (!key(&credentials->ext.aka.k, words[5], k, sizeof(k)) || !key(&credentials->ext.aka.op, words[6], op, sizeof(op)) ||
        !key(&credentials->ext.aka.amf, words[7], amf, sizeof(amf)) || pjsua_acc_add(&account, PJ_TRUE, &id) != PJ_SUCCESS) {
        fprintf(stderr, "akareg: an argument is wrong\n");
        return 2;
    }
    while (done < 3 && done_with(id, done))
        done++;
    pjsua_destroy2(PJSUA_DESTROY_NO_TX_MSG);
    return done == 3 ? 0 : 1;
}
