# SPDX-License-Identifier: Apache-2.0
"""`keyferry agent`: two AS_IDs at one SIP URI, two workers of one application, real processes and sockets (DESIGN §6, §7)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keyferry.transports.agent_socket import LIMIT
from system.agents import MAIL, WIKI, AgentLab, Login, at_once, make_agent_lab, running_agent, running_workers
from system.serving import EVENT_LIMIT, keyferry, outlive_this_second, serving, ue, until
from transports.agentkit import short_folder

CORE = ("--role", "pcscf", "--role", "icscf", "--role", "scscf", "--role", "admin")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[AgentLab]:
    with short_folder() as folder:
        yield make_agent_lab(tmp_path, folder)


def test_two_workers_share_one_agent(made: AgentLab) -> None:
    """Each count and each first nonce is taken once, whichever worker it goes to; de-registration ends access at both."""
    with running_agent(made) as agent, serving(made.lab.serve, made.lab.state, *CORE), running_workers(made) as workers:
        assert agent.told["as_ids"] == [WIKI, MAIL]
        one, two = workers
        outlive_this_second()
        assert ue(made.lab, "register")["keys"]
        user, elsewhere = Login.of(made.lab, WIKI), Login.of(made.lab, MAIL)
        taken = sorted(answer.status for answer in at_once(workers, user.authorization(user.first, 1)))
        assert taken == [200, 401]
        nonce = one.get().nonce
        assert sorted(answer.status for answer in at_once(workers, user.authorization(nonce, 1))) == [200, 401]
        for count in (2, 3, 9):
            answers = at_once(workers, user.authorization(nonce, count))
            assert sorted(answer.status for answer in answers) == [200, 401]
            assert next(answer for answer in answers if answer.status == 401).stale
        bodies = {worker.get(user.authorization(nonce, count)).body for count, worker in ((20, one), (21, two))}
        assert len(bodies) == 1  # the same user, by the same id
        assert bodies.pop().startswith("sip:user1_public1@home1.net ")
        # The key of the other application is none here, though it is at the same agent.
        foreign = one.get(elsewhere.authorization(one.get().nonce, 1))
        assert (foreign.status, foreign.stale) == (401, False)
        ue(made.lab, "deregister")
        for worker in workers:
            ended = worker.get(user.authorization(nonce, 30))
            assert (ended.status, ended.stale) == (401, False)


def test_an_agent_that_ends_is_missed_plainly_and_goes_on_where_it_was(made: AgentLab) -> None:
    """A clean end keeps nonces and counts; after kill -9 every nonce is stale. Nothing is taken twice."""
    with serving(made.lab.serve, made.lab.state, *CORE), running_workers(made) as workers:
        one, two = workers
        with running_agent(made) as agent:
            outlive_this_second()
            assert ue(made.lab, "register")["keys"]
            user = Login.of(made.lab, WIKI)
            nonce = one.get().nonce
            assert one.get(user.authorization(nonce, 5)).status == 200
            agent.end()
            for worker in workers:
                assert worker.get(user.authorization(nonce, 6)).status == 503
                assert worker.get().status == 503
        with running_agent(made) as agent:
            for worker in workers:
                replayed = worker.get(user.authorization(nonce, 5))
                assert (replayed.status, replayed.stale) == (401, True)
            assert two.get(user.authorization(nonce, 6)).status == 200
            assert one.get(user.authorization(nonce, 6)).status == 401
            first = at_once(workers, user.authorization(user.first, 1))
            assert sorted(answer.status for answer in first) == [200, 401]
            agent.kill()
            assert [worker.get(user.authorization(nonce, 7)).status for worker in workers] == [503, 503]
        with running_agent(made):
            for worker in workers:
                for old, count in ((nonce, 6), (nonce, 7), (user.first, 1)):
                    again = worker.get(user.authorization(old, count))
                    assert (again.status, again.stale) == (401, True)
            fresh = two.get().nonce
            assert [worker.get(user.authorization(fresh, count)).status for count, worker in ((1, one), (2, two))] == [200, 200]
            replayed = one.get(user.authorization(fresh, 2))
            assert (replayed.status, replayed.stale) == (401, True)


def test_an_agent_that_hangs_holds_up_nobody_and_is_taken_back_as_it_comes(made: AgentLab) -> None:
    """Stopped, as by a debugger or a machine without memory: connections and questions are taken, and nothing is answered."""
    with running_agent(made) as agent, serving(made.lab.serve, made.lab.state, *CORE), running_workers(made) as workers:
        assert ue(made.lab, "register")["keys"]
        user, nonce = Login.of(made.lab, WIKI), workers[0].get().nonce
        assert [worker.get(user.authorization(nonce, count)).status for count, worker in enumerate(workers, 1)] == [200, 200]
        agent.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with ThreadPoolExecutor(16) as pool:
                asked = [pool.submit(worker.get, user.authorization(nonce, count)) for count in range(3, 11) for worker in workers]
                assert {one.result().status for one in asked} == {503}
            assert time.monotonic() - began < 6 * LIMIT  # one time-out for all, not eight in a row
        finally:
            agent.process.send_signal(signal.SIGCONT)
        for worker in workers:
            until(lambda worker=worker: worker.get().status == 401, seconds=EVENT_LIMIT, what="the agent is asked again")  # type: ignore[misc]
        fresh = workers[0].get().nonce
        assert [worker.get(user.authorization(fresh, count)).status for count, worker in enumerate(workers, 1)] == [200, 200]


def test_there_is_one_agent_for_a_state_directory(made: AgentLab) -> None:
    """Two would take each count once each."""
    with running_agent(made):
        done = keyferry("agent", "--config", made.agent, "--state", made.lab.state)
        assert done.returncode == 1
        assert "another process" in done.stderr


def test_the_socket_is_for_its_user_alone_and_goes_with_the_agent(made: AgentLab) -> None:
    with running_agent(made) as agent:
        assert agent.told["socket"] == str(made.socket.resolve())
        assert made.socket.stat().st_mode & 0o777 == 0o600
    until(lambda: not made.socket.exists(), seconds=EVENT_LIMIT, what="the socket is gone")
