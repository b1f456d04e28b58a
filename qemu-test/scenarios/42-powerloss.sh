# SPDX-License-Identifier: GPL-2.0-only
# null-blk: 5M
# mem: 3G
# timeout: 900
# cost: 110
# env: POINTS SEED LOAD SNAPSHOTS MOST_BAD
# modprobe: dm-log-writes dm-delay ext4
# Power loss. Origin and region lie on one dm-log-writes, so that one log orders the writes to both. Writers of
# self-describing blocks have half of the device, a file system whose writer syncs has the other, while snapshots of both
# scopes are taken, replicated and deleted; marks in the log tell what has been promised when. Then presnap-powerloss
# makes of the log what a power loss would have left, at POINTS points (300; "all"), and checks presnap on each.
# The log tells whose flush each is, so that the two can be taken for disks with caches of their own. SEED (1) is that of
# load and losses.
. /presnap/lib.sh
for word in "$@"; do declare "$word"; done
load
# The disk: sectors of 512 bytes, each request takes its time, and one queue, so that no flush overtakes another (of two
# at a time dm-log-writes could log the later one's promise without what the earlier one has).
disk=/sys/kernel/config/nullb/disk
modprobe null_blk nr_devices=0
mkdir $disk
for word in size=30 blocksize=512 submit_queues=1 hw_queue_depth=64 irqmode=2 completion_nsec=300000 discard=1 memory_backed=1 power=1; do echo "${word#*=}" >"$disk/${word%%=*}"; done
C=$DISK0 D=/dev/disk LOG=/dev/ram6 O=/dev/mapper/o R=/dev/mapper/r P=/dev/mapper/p
SPLIT=$((5 * 2048)) ALL=$(sectors "$D") HALF=$((2 * 2048))
REGION=$((ALL - SPLIT))
# Three pairs of disks for what a power loss leaves, and the log; only what is written takes memory.
modprobe brd rd_nr=7 rd_size=$((1 << 20)) max_part=0
dmsetup create j --table "0 $ALL log-writes $D $LOG"
# dm-delay, without a delay: dm-linear would send flushes on without saying which of the two they are for.
dmsetup create --concise "o,,,rw,0 $SPLIT delay /dev/mapper/j 0 0;r,,,rw,0 $REGION delay /dev/mapper/j $SPLIT 0"
for d in o r; do eq "$(cat "/sys/block/$(dmsetup info -c --noheadings -o blkdevname $d)/queue/write_cache")" "write back" "the cache of $d"; done
presnap format --origin $O $R --force >/dev/null 2>&1
dmsetup create p --table "0 $SPLIT presnap $O $R"
S=/sys/block/$(dmsetup info -c --noheadings -o blkdevname p)/presnap
# A mirror of a FUA write would lie in the log before the copy that it came after (userspace/torture/src/writelog.rs).
for word in predictor=ewma tick_ms=50 horizon_ms=500 mirror=off intent_clean_ms=300; do echo "${word#*=}" >"$S/${word%%=*}"; done
dmsetup create --concise "a,,,rw,0 $HALF linear $P 0;b,,,rw,0 $((SPLIT - HALF)) linear $P $HALF"
mkdir /tmp/replicas /tmp/m
dd if=/dev/urandom of=/tmp/noise bs=1M count=3 status=none
mkfs.ext4 -q -E lazy_itable_init=0,nodiscard -b 1024 -N 64 -J size=1 /dev/mapper/b
mount /dev/mapper/b /tmp/m

cat >/tmp/mark <<X
#!/bin/bash
# What was durable at stamp \$1 is so.
read -r op <$S/op
dmsetup message j 0 mark "durable:\$1:op:\$op"
[ -e /tmp/begun ] || { touch /tmp/begun && dmsetup message j 0 mark begin; }
X
cat >/tmp/snap <<'X'
#!/bin/bash
# Takes snapshot number $1, prints its id when it has been sealed. Each scope comes after each.
case $(($1 % 4)) in 2 | 3) scope=delta ;; *) scope=image ;; esac
id=$(presnap snapshot p --scope $scope --within 200ms) || exit 1
dmsetup message j 0 mark "sealed:$id"
dmsetup message p 0 state "$id" >>/tmp/states
echo "$id"
X
cat >/tmp/send <<'X'
#!/bin/bash
# Brings the replica from snapshot $2 (nothing at first) to snapshot $1, compares it with the image, prints its path.
set -e -o pipefail
if [ -n "$2" ]; then
	presnap send p "$1" --base "$2" | presnap receive -q "$REPLICA"
else
	presnap send p "$1" | presnap receive -q --force "$REPLICA"
fi
dd if="$REPLICA" of="/tmp/replicas/$1" bs=1M iflag=direct status=none
if grep -q "^$1 .* scope=image" /tmp/states; then
	presnap image p "$1" "v$1" >&2
	cmp "/dev/mapper/v$1" "$REPLICA" >&2
	presnap image --remove "v$1" >&2
fi
echo "$REPLICA"
X
cat >/tmp/done <<'X'
#!/bin/bash
# Deletes all but the last two.
dmsetup message p 0 list | head -n -2 | while read -r id _; do
	dmsetup message j 0 mark "deleting:$id"
	dmsetup message p 0 delete "$id"
	while dmsetup message p 0 list | grep -q "^$id "; do sleep 0.02; done
	dmsetup message j 0 mark "deleted:$id"
done
X
chmod +x /tmp/mark /tmp/snap /tmp/send /tmp/done
# The file system's writer: round N is in file N % 8, then in `round`, then in the log.
(
	trap - ERR
	n=0
	until [ -e /tmp/stop ]; do
		n=$((n + 1))
		dd if=/tmp/noise of=/tmp/m/file$((n % 8)) bs=4k count=16 skip=$((n * 13 % 512)) conv=fsync status=none &&
			echo $n >/tmp/m/round.new && sync /tmp/m/round.new && mv /tmp/m/round.new /tmp/m/round && sync -f /tmp/m &&
			dmsetup message j 0 mark "fs:$n" || { touch /tmp/fs-failed; break; }
		sleep 0.6
	done
	echo $n >/tmp/rounds
) &
writer=$!
begin=$(now_ms)
if ! REPLICA=$C presnap-torture --device /dev/mapper/a --seconds "${LOAD:-6}" --seed "${SEED:-1}" --threads 3 --pause-us 25000 --mark-ms 300 \
	--snapshots "${SNAPSHOTS:-6}" --snapshot-cmd "/tmp/snap {n}" --verify-cmd "/tmp/send {id} {prev}" --done-cmd /tmp/done \
	--mark-cmd "/tmp/mark {stamp}" --history /tmp/history >/tmp/torture.log 2>&1; then
	tail -40 /tmp/torture.log
	die "the load"
fi
touch /tmp/stop
wait $writer
[ ! -e /tmp/fs-failed ] || die "the file system's writer failed"
tail -2 /tmp/torture.log
note "$(cat /tmp/rounds) rounds of the file system; $(($(now_ms) - begin)) ms of load"
note "staged valid $(cat "$S/stats/staged_valid_blocks"), guarded $(cat "$S/stats/guarded_blocks"), drained $(cat "$S/stats/drained_blocks"), dropped $(cat "$S/stats/snapshots_dropped"); intent: $(cat "$S/stats/intent_writes") writes, $(cat "$S/stats/intent_demanded") extents demanded"
umount /tmp/m
for d in a b p o r j; do dmsetup remove $d; done

pairs=()
for i in 0 2 4; do
	# Of the region's size: on a larger disk it would grow.
	dmsetup create "region$i" --table "0 $REGION linear /dev/ram$((i + 1)) 0"
	pairs+=(--origin /dev/ram$i --region "/dev/mapper/region$i")
done
# Devices come and go by the hundred, and each waits for RCU.
echo 1 >/sys/kernel/rcu_expedited
points=("--points=${POINTS:-300}")
[ "${POINTS:-}" != all ] || points=()
presnap-powerloss --log "$LOG" --split $SPLIT --region-sectors $REGION "${pairs[@]}" \
	--history /tmp/history --replicas /tmp/replicas --noise /tmp/noise --seed "${SEED:-1}" "${points[@]}" --most-bad "${MOST_BAD:-5}" || die "power loss"
