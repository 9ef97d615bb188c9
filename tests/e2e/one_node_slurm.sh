#!/usr/bin/env bash
# Starts a SLURM of this one machine for the tests, from Debian's packages slurmctld, slurmd, slurm-client and munge;
# no cgroups, so that it runs in a container. Takes root.
#
#   . tests/e2e/one_node_slurm.sh FOLDER       starts the daemons, with all their files in FOLDER; sets SLURM_CONF
#   kill $(cat FOLDER/*.pid)                   stops them
folder=$(realpath -m "$1") && mkdir -p "$folder/state" "$folder/spool" || return
host=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" || return
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${SLURMCTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=5
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld && slurmd || return
for _ in $(seq 60); do
    sinfo --noheader --states=idle --format=%n 2>/dev/null | grep -q . && return
    sleep 0.5
done
echo "error: the node did not become idle; see $folder/slurmctld.log and slurmd.log" >&2
return 1
