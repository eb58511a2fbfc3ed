#!/bin/sh
# A worker of a process pool: registers the deployments, takes up runs that died with an earlier worker, serves.
set -eu
POOL=${POOL:-pco}

ATTEMPTS=${RECOVER_ATTEMPTS:-5}
pco deploy --pool "$POOL" --wait-for-server 300 --resume-crashed "$ATTEMPTS"

# Whether a run is dead is told by the lock in its folder: so here, where the folders are.
while true; do
    if [ "$ATTEMPTS" -gt 0 ]; then pco recover --resume --max-attempts "$ATTEMPTS"; else pco recover; fi || true
    sleep "${RECOVER_SECONDS:-60}"
done &

exec prefect worker start --type process --pool "$POOL" --with-healthcheck
