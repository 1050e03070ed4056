# SPDX-License-Identifier: Apache-2.0
"""A Flask application that knows its users by their SIM cards: `keyferry dev --app flask_app:app` in this folder."""

from flask import Flask, request

app = Flask(__name__)


@app.get("/me")
def me() -> dict[str, str | None]:
    user = request.environ["keyferry.user"]
    return {"name": user.display_name, "id": request.remote_user}
