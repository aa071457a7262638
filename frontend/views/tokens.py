"""Tokens: one's own, for an admin everybody's; make and revoke them."""

import streamlit as st

from calift_core.schema.wire.operations import TokenInfo, TokenMake
from frontend import api, page, text
from frontend.tables import Column, Table

_SCOPES = {
    "read": "read: sees everything",
    "submit": "submit: also makes runs and changes its own",
    "admin": "admin: changes anything",
}
_DAYS = {"A week": 7, "A month": 30, "90 days": 90, "A year": 365, "Never": None}
_STATES = {
    "valid": text.Mark("valid", "✓", "green"),
    "expired": text.Mark("expired", "○", "gray"),
    "revoked": text.Mark("revoked", "✕", "red"),
}


def _make() -> None:
    me = api.visitor()
    is_admin = me.scope == "admin"
    scopes = list(_SCOPES)[: list(_SCOPES).index(me.scope) + 1]
    with st.form("new-token"):
        owner = st.text_input(
            "Owner",
            "" if is_admin else me.name,
            max_chars=120,
            disabled=not is_admin,
            placeholder="Ada",
            help="Runs that are submitted with it belong to this name",
        )
        scope = st.radio("Scope", scopes, format_func=_SCOPES.__getitem__)
        days = st.selectbox("Expires after", list(_DAYS), index=2)
        note = st.text_input("What it is for", max_chars=500, placeholder="CI of the lab")
        if st.form_submit_button("Make a token", type="primary"):
            if not owner.strip():
                st.warning("A token must have an owner.", icon=":material/warning:")
                return
            wanted = TokenMake(owner=owner.strip(), scope=scope, days=_DAYS[days], note=note)
            made = api.act("make the token", lambda: api.client().make_token(wanted))
            if made is not None:
                st.session_state["made-token"] = made.token
                st.rerun()


def _revoke(tokens: list[TokenInfo]) -> None:
    valid = {token.id: token for token in tokens if token.state == "valid"}
    if not valid:
        return
    with st.popover("Revoke a token", icon=":material/key_off:"):
        chosen = st.selectbox(
            "Token",
            list(valid),
            format_func=lambda i: " · ".join(filter(None, (i, valid[i].owner, valid[i].note))),
            key="token-to-revoke",
        )
        st.caption("Whoever uses it, and the sessions that it opened, are refused from now on.")
        if st.button("Revoke it", type="primary", key="revoke-token"):

            def call() -> bool:
                api.client().revoke_token(chosen)
                return True

            if api.act(f"revoke {chosen}", call):
                page.flash(f"{chosen} is revoked.")
                st.session_state.pop("token-to-revoke", None)
                st.rerun()


def main() -> None:
    page.head(
        "Tokens",
        "What people and programs log in with. A token gives no more than the one that makes it.",
    )
    if made := st.session_state.pop("made-token", ""):
        st.success("Copy the token now: it is shown this once.", icon=":material/key:")
        st.code(made, language=None)
    tokens = api.ask("list the tokens", api.client().tokens)
    if tokens:
        rows = [
            {
                "id": token.id,
                "owner": token.owner,
                "scope": token.scope,
                "state": page.mark(_STATES[token.state]),
                "made": f"{token.created_at:%Y-%m-%d}",
                "expires": f"{token.expires_at:%Y-%m-%d}" if token.expires_at else "never",
                "note": token.note,
            }
            for token in reversed(tokens)
        ]
        columns = [
            Column("id", "Token"),
            Column("owner", "Owner", "prose"),
            Column("scope", "Scope"),
            Column("state", "State"),
            Column("made", "Made"),
            Column("expires", "Expires"),
            Column("note", "For", "prose"),
        ]
        page.table(
            Table(columns, rows), caption="Tokens without their secrets, the newest first",
            stack=True,
        )  # fmt: skip
        _revoke(tokens)
    else:
        page.empty("No token has been made here", "The service's own token is in its settings.")
    st.header("New token", anchor=False)
    _make()


main()
