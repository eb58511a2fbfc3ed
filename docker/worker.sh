#!/bin/sh
# A worker of a process pool: registers the deployments, takes up runs that died with an earlier worker, serves.
set -eu
POOL=${POOL:-pco}

pco deploy --pool "$POOL" --wait-for-server 300

# Whether a run is dead is told by the lock in its folder: so here, where the folders are.
while true; do
    pco recover --resume --max-attempts "${RECOVER_ATTEMPTS:-5}" || true
    sleep "${RECOVER_SECONDS:-60}"
done &

exec prefect worker start --type process --pool "$POOL" --with-healthcheck
