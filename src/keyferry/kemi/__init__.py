# SPDX-License-Identifier: Apache-2.0
"""What runs inside a stock Kamailio that is the S-CSCF (DESIGN §10): Python 3.11 there, `cryptography` and `lxml` alone.

requests.py     what is read of a REGISTER, strictly, since Kamailio reads it too
challenge.py    a 401 on its way out: CK', IK' instead of CK, IK, or it does not leave
push.py         the body of a third-party REGISTER with the sealed key block
store.py        {nonce → K_M sealed, IMPI, IMPU, state}, shared between Kamailio's processes and kept over restarts
rspauth.py      ask our HSS for the rspauth of an accepted answer
settings.py     the file that `keyferry kamailio` writes for the script
ended.py        whom the HSS has ended, and what is sent to erase their keys
scscf.py        the decisions, without Kamailio
script.py       the thin part that Kamailio calls
"""
