#!/bin/bash
# Starts a Slurm of one node on this machine, for tests: munged, slurmctld and slurmd, as root.
#
#   apt-get install slurm-wlm munge
#   tests/slurm/start.sh [STATE]     STATE: folder of its configuration and state, /tmp/lt_jax_slurm
#   tests/slurm/start.sh stop [STATE]
#
# Runs without cgroups, so that a container will do: processes are tracked by their parents
# (proctrack/linuxproc), and no accounting database is kept.
set -euo pipefail

stop=0
if [[ "${1:-}" == stop ]]; then stop=1; shift; fi
STATE=${1:-/tmp/lt_jax_slurm}

end() {  # of the process whose number the file holds
    [[ -s "$1" ]] && kill "$(cat "$1")" 2>/dev/null || true
    rm -f "$1"
}

if ((stop)); then
    end "$STATE/slurmd.pid"; end "$STATE/slurmctld.pid"; end "$STATE/munged.pid"
    exit 0
fi

for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || { echo "$program: missing; apt-get install slurm-wlm munge" >&2; exit 1; }
done
mkdir -p "$STATE"/{ctld,d,log}
HOST=$(hostname -s)
cat > "$STATE/slurm.conf" <<CONF
ClusterName=lt_jax
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: after 10 s, not 120.
AuthInfo=socket=$STATE/munge.socket,cred_expire=10
CryptoType=crypto/munge
MpiDefault=none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=30
MinJobAge=60
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=$HOST Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=$HOST MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF="$STATE/slurm.conf"

if [[ ! -s "$STATE/munge.key" ]]; then
    dd if=/dev/urandom of="$STATE/munge.key" bs=1 count=1024 status=none
    chmod 600 "$STATE/munge.key"
fi
"$0" stop "$STATE"
sleep 1
munged --force --key-file="$STATE/munge.key" --socket="$STATE/munge.socket" \
    --pid-file="$STATE/munged.pid" --log-file="$STATE/log/munged.log" \
    --seed-file="$STATE/munge.seed" --num-threads=2
slurmctld
slurmd
for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -q idle; then
        echo "export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 1
done
echo "no idle node within a minute; see $STATE/log" >&2
exit 1
