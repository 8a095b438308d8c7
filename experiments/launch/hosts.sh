#!/bin/sh
# A worker on each of some hosts, in a screen that outlives this shell:
#
#     experiments/launch/hosts.sh "host1 host2 host3" /shared/runs ladder --families dense mamba
#
# The hosts share the runs directory, and ssh asks for no password. SSH is the command that runs a
# line elsewhere (ssh), ISOFLOP the command there (isoflop), LOGS where each worker writes.
set -eu
hosts=$1 runs=$2
shift 2
words=
for word in "$@"; do
  words="$words '$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
done
for host in $hosts; do
  log=${LOGS:-$runs/logs}/$host.log
  work="${ISOFLOP:-isoflop} work$words --runs '$runs' --quiet"
  # without screen, nohup is as good
  ${SSH:-ssh} "$host" "mkdir -p '${log%/*}' && {
    if command -v screen >/dev/null; then screen -dmS isoflop sh -c \"$work >>'$log' 2>&1\";
    else nohup sh -c \"$work\" >>'$log' 2>&1 </dev/null & fi; }"
done
echo "look with: ${ISOFLOP:-isoflop} status --runs $runs --watch"
