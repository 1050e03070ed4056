# SPDX-License-Identifier: Apache-2.0
"""What is left to do for one framework or another; each module imports its framework, and nobody imports the module but you.

starlette.py   sim_user(request); request.user and @requires("sim") need nothing
fastapi.py     Security(sim_user): the OpenAPI document says that an operation needs a SIM
django.py      SimUserMiddleware: RemoteUserBackend's user, under Django's ASGI handler
quart.py       sim_user(), @sim_required
litestar.py    the guard sim_required, an OpenAPI component; request.user needs nothing
"""
