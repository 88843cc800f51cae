"""The ledger's tables, the same in SQLite and PostgreSQL.

Energy is in whole micro-joules (``_uj``), carbon in micro-grams (``_ug``), money in nano-dollars
(``_nusd``): see ``meters/exact.py`` for why. Times are Unix seconds. Unknown is NULL, never 0, in
rows; roll-ups carry beside each sum how many rows it knows.

Rows:      requests, windows, window_totals, shares
Roll-ups:  request_hours (by the hour a request arrived), energy_hours (by the hour energy was
           drawn, requests' part), team_days (the same by day, node and team), node_hours (by the
           hour energy was drawn, all of it), each kept in the transaction that writes the rows.
           ``dims`` holds what they group by.
People:    teams, organisations, projects, api_keys, accounts, changes, audit_log, feedback
Pages:     dashboard_frozen
Ourselves: own_hours
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()


def _known(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0, server_default="0")


meta = Table(
    "ledger_meta",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_s", Double, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("start_s", Double, nullable=False),
    Column("end_s", Double, nullable=False),
    Column("hour_s", BigInteger, nullable=False),  # start of the hour of start_s
    Column("dim_id", BigInteger, nullable=False),
    Column("team", Text, nullable=False),
    Column("key_id", Text),
    Column("project", Text),
    Column("tags", Text, nullable=False),  # comma-separated, sorted
    Column("endpoint", Text, nullable=False),
    Column("model_asked", Text, nullable=False),
    Column("backend", Text),
    Column("model_group", Text),
    Column("node", Text),
    Column("policy", Text, nullable=False),
    Column("policy_version", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error_code", Text),
    Column("outcome", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("cache", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("task", Text),
    Column("prompt_tokens", BigInteger),
    Column("prompt_tokens_counted", Boolean, nullable=False),
    Column("cached_prompt_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("usage_source", Text, nullable=False),
    Column("sent_s", Double),
    Column("first_token_s", Double),
    Column("ttft_us", BigInteger),
    Column("latency_us", BigInteger),
    Column("energy_uj", BigInteger),  # the estimate
    Column("energy_low_uj", BigInteger),
    Column("energy_high_uj", BigInteger),
    Column("hosted_uj", BigInteger),  # the part of it that no meter replaces
    Column("hosted_low_uj", BigInteger),
    Column("hosted_high_uj", BigInteger),
    Column("marginal_energy_uj", BigInteger),
    Column("carbon_ug", BigInteger),
    Column("money_nusd", BigInteger),
    Column("quality", Double),
    Column("evidence", Text, nullable=False),
    Column("estimator_version", Text, nullable=False),
    Column("zone", Text),
    Column("pue", Double),
    Column("intensity_g_per_kwh", Double),
    Column("counterfactual_backend", Text),
    Column("counterfactual_energy_uj", BigInteger),
    Column("counterfactual_carbon_ug", BigInteger),
    Column("simulated", Boolean, nullable=False),
    Column("replica", Text, nullable=False),
    Column("session", Text),
    Column("decision", Text),
    Column("arm", Text),  # of an experiment
    Column("intensity_tier", Text, nullable=False, default="", server_default=""),
    Column("user_hash", Text),  # a pseudonym; NULL unless the team wants it kept
    Column("extra", Text),  # fields of newer records that this schema has no column for, as JSON
    Index("requests_by_team", "team", "start_s"),
    Index("requests_by_node", "node", "end_s"),
)

windows = Table(
    "windows",
    metadata,
    Column("window_id", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("start_s", Double, nullable=False),
    Column("end_s", Double, nullable=False),
    Column("hour_s", BigInteger, nullable=False),  # start of the hour of start_s
    Column("energy_uj", BigInteger, nullable=False),
    Column("host_energy_uj", BigInteger),
    # of the windows that were folded into it, those whose host was read
    Column("host_windows", BigInteger, nullable=False, server_default="1"),
    Column("idle_power_w", Double),
    Column("prompt_tokens", Double),
    Column("cached_prompt_tokens", Double),
    Column("generated_tokens", Double),
    Column("steps", Double),
    Column("running", Double),
    Column("waiting", Double),
    Column("flops", Double),
    Column("read_bytes", Double),
    Column("resolution_j", Double),
    Column("evidence", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Column("extra", Text),
    Index("windows_by_node", "node", "end_s"),
)

window_totals = Table(
    "window_totals",
    metadata,
    Column("window_id", Text, primary_key=True),
    Column("node", Text, nullable=False),
    Column("start_s", Double, nullable=False),
    Column("end_s", Double, nullable=False),
    Column("hour_s", BigInteger, nullable=False),  # start of the hour of start_s
    Column("metered_uj", BigInteger, nullable=False),
    Column("attributed_uj", BigInteger, nullable=False),  # the sum of its shares
    Column("idle_uj", BigInteger, nullable=False),
    Column("external_uj", BigInteger, nullable=False),
    Column("unattributed_uj", BigInteger, nullable=False),
    Column("metered_us", BigInteger, nullable=False),  # end_s - start_s
    Column("windows", BigInteger, nullable=False, server_default="1"),  # that were folded into it
    Column("evidence", Text, nullable=False),
    Column("meter", Text, nullable=False),
    Index("window_totals_by_node", "node", "end_s"),
)

shares = Table(
    "shares",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("window_id", Text, primary_key=True),
    Column("energy_uj", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

DIMENSIONS = (
    "team",
    "project",
    "key_id",
    "tags",
    "endpoint",
    "model_asked",
    "model_group",
    "backend",
    "node",
    "zone",
    "pue",
    "policy",
    "task",
    "cache",
    "outcome",
    "evidence",
    "simulated",
    "counterfactual_backend",
    "arm",
)

dims = Table(
    "dims",
    metadata,
    # a hash of the others, so that every replica gives the same combination the same number
    Column("dim_id", BigInteger, primary_key=True, autoincrement=False),
    Column("team", Text, nullable=False, index=True),
    *(
        Column(name, Text, nullable=False)  # '' where a row has NULL
        for name in DIMENSIONS
        if name not in ("team", "pue", "simulated", "arm")
    ),
    Column("arm", Text, nullable=False, server_default=""),
    Column("pue", Double),
    Column("simulated", Boolean, nullable=False),
)

# Sums of request rows; ``x_known`` counts the rows where x is not NULL.
REQUEST_SUMS = (
    "requests",
    "prompt_tokens",
    "cached_prompt_tokens",
    "output_tokens",
    "reasoning_tokens",
    "tokens_known",
    "energy_uj",
    "energy_low_uj",
    "energy_high_uj",
    "energy_known",
    "carbon_ug",
    "carbon_known",
    "money_nusd",
    "money_known",
    "counterfactual_energy_uj",
    "counterfactual_carbon_ug",
    "counterfactual_known",
    "compared_energy_uj",  # the estimate of those rows that have a counterfactual
    "compared_carbon_ug",
    "latency_us",
    "latency_known",
    "ttft_us",
    "ttft_known",
    "metered_uj",  # shares of these requests, whenever they were drawn
    "metered_requests",  # rows with at least one share
    "metered_estimate_uj",  # what had been estimated for those rows and is metered now
    "metered_estimate_low_uj",
    "metered_estimate_high_uj",
)

request_hours = Table(
    "request_hours",
    metadata,
    Column("team", Text, primary_key=True),
    Column("hour_s", BigInteger, primary_key=True, autoincrement=False),  # the hour's start
    Column("dim_id", BigInteger, primary_key=True, autoincrement=False),
    *(_known(name) for name in REQUEST_SUMS),
    sqlite_with_rowid=False,
)

# The requests' part of the metered energy, by the hour in which it was drawn. ``dim_id`` 0 and
# team '' hold shares whose request has not been recorded yet.
energy_hours = Table(
    "energy_hours",
    metadata,
    Column("team", Text, primary_key=True),
    Column("hour_s", BigInteger, primary_key=True, autoincrement=False),
    Column("dim_id", BigInteger, primary_key=True, autoincrement=False),
    Column("metered_node", Text, primary_key=True),
    Column("metered_evidence", Text, primary_key=True),
    _known("energy_uj"),
    sqlite_with_rowid=False,
)

# The same by UTC day, node and team: what divides idle energy over the 28 days before.
team_days = Table(
    "team_days",
    metadata,
    Column("day", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    Column("node", Text, primary_key=True),
    Column("team", Text, primary_key=True),
    _known("energy_uj"),
    sqlite_with_rowid=False,
)

NODE_SUMS = (
    "windows",
    "metered_uj",
    "attributed_uj",
    "idle_uj",
    "external_uj",
    "unattributed_uj",
    "metered_us",  # how long was metered
    "host_energy_uj",
    "host_known",
)

node_hours = Table(
    "node_hours",
    metadata,
    Column("node", Text, primary_key=True),
    Column("hour_s", BigInteger, primary_key=True, autoincrement=False),
    Column("evidence", Text, primary_key=True),
    Column("meter", Text, primary_key=True),
    *(_known(name) for name in NODE_SUMS),
    sqlite_with_rowid=False,
)

teams = Table(
    "teams",
    metadata,
    Column("team", Text, primary_key=True),
    Column("organisation", Text, nullable=False, default=""),
    Column("time_zone", Text, nullable=False, default="UTC"),
    Column("settings", Text, nullable=False, default="{}"),  # JSON: policy, limits, budgets, ...
    Column("created_s", Double, nullable=False),
    Column("archived_s", Double),
)

organisations = Table(
    "organisations",
    metadata,
    Column("organisation", Text, primary_key=True),
    Column("settings", Text, nullable=False),  # JSON: budgets and their time zone
    Column("created_s", Double, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("team", Text, primary_key=True),
    Column("project", Text, primary_key=True),
    Column("created_s", Double, nullable=False),
    Column("archived_s", Double),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),  # the public prefix
    Column("key_hash", Text, nullable=False, unique=True),  # never the key
    Column("team", Text, nullable=False),
    Column("project", Text),
    Column("role", Text, nullable=False),
    Column("name", Text, nullable=False, default=""),
    Column("settings", Text, nullable=False, default="{}"),  # JSON: limits of this key
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double),
    Column("revoked_s", Double),
    Column("replaced_by", Text),
    Index("api_keys_by_team", "team"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("password_hash", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("teams", Text, nullable=False, default="[]"),  # JSON list
    Column("created_s", Double, nullable=False),
    Column("disabled_s", Double),
)

# A number that every change raises, so that others notice without reading everything.
changes = Table(
    "changes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("entry_id", Text, primary_key=True),
    Column("at_s", Double, nullable=False, index=True),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False, default="{}"),  # JSON, without secrets
)

# What somebody was shown, for ever under its hash.
# Joulegate's own processes, each with a name of its own for as long as it lives. Beside the books:
# it is no node's metered energy.
own_hours = Table(
    "own_hours",
    metadata,
    Column("process", Text, primary_key=True),
    Column("hour_s", BigInteger, primary_key=True, autoincrement=False),
    Column("energy_uj", BigInteger, nullable=False),
    Column("metered_uj", BigInteger, nullable=False),  # of that: a share of the host's counter
    sqlite_with_rowid=False,
)

dashboard_frozen = Table(
    "dashboard_frozen",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("team", Text, nullable=False),
    Column("frozen_s", Double, nullable=False),
    Column("body", Text, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("source", Text, primary_key=True),  # who says so: "caller", "judge", ...
    Column("at_s", Double, nullable=False, index=True),
    Column("team", Text, nullable=False),
    Column("score", Double, nullable=False),  # 0..1
)
