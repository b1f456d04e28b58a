# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Sourced by main.sh: replication, the proofs, and the writers' latency.

replica_holds=0
# low NICE COMMAND...: behind the load
low() (
	renice -n "$1" -p $BASHPID >/dev/null
	shift
	"$@"
)
# replicate ID BASE: sends to the replica; BASE 0 sends the whole image
replicate() {
	local begin=$SECONDS how=(--base "$2") spool=(--spool "$W")
	# Nothing is lost if the first one fails: the replica holds nothing yet.
	[ "$2" != 0 ] || how=() spool=(--no-spool)
	if ! low 5 presnap send $DEV "$1" "${how[@]}" 2>$W/send.log | low 5 presnap receive "$S" "${spool[@]}" >$W/receive.log 2>&1; then
		cat $W/send.log $W/receive.log
		die "replication of snapshot $1"
	fi
	replica_holds=$1
	step "snapshot $1: $(cat $W/receive.log) in $((SECONDS - begin)) s"
}

# prove ID: the replica holds it now. A line "ID equal fsck db" to $W/proofs, each 1 or 0.
prove() {
	local id=$1 begin=$SECONDS compared checked equal=0 fsck=0 db=0 sums
	# 1. The same bytes: the image, through the region, and the replica, both read from the devices.
	presnap image $DEV "$id" view >/dev/null
	blockdev --flushbufs "$S"
	if low 10 cmp -s /dev/mapper/view "$S"; then equal=1; else cmp /dev/mapper/view "$S" || :; fi
	blockdev --flushbufs "$S"
	[ "$(sectors /dev/mapper/view)" = "$(sectors "$S")" ] || equal=0
	presnap image --remove view
	compared=$SECONDS
	# 2. A file system. On a throw-away overlay, so that the replica stays what was received.
	truncate -s 256M $W/cow
	local loop
	loop=$(losetup -f --show $W/cow)
	dmsetup create copy --table "0 $(sectors "$S") snapshot $S $loop N 8"
	mkdir -p /mnt/copy
	if mount /dev/mapper/copy /mnt/copy && umount /mnt/copy && low 10 e2fsck -f -n /dev/mapper/copy >$W/fsck.log 2>&1; then
		fsck=1 checked=$SECONDS
		# 3. A database.
		if sums=$(database); then db=1; else echo "$sums"; fi
	else
		cat $W/fsck.log
	fi
	umount /mnt/copy 2>/dev/null || :
	dmsetup remove --retry copy
	losetup -d "$loop"
	rm -f $W/cow
	echo "$id $equal $fsck $db" >>$W/proofs
	[ "$equal$fsck$db" = 111 ] || failures=$((failures + 1))
	step "snapshot $id: replica $([ $equal = 1 ] && echo "equal byte for byte" || echo "DIFFERS"), e2fsck $([ $fsck = 1 ] && echo clean || echo FAILS), database $([ $db = 1 ] && echo "consistent ($sums)" || echo FAILS) ($((compared - begin)) + $((${checked:-$SECONDS} - compared)) + $((SECONDS - ${checked:-$SECONDS})) s)"
}

# database: starts PostgreSQL on the copy, mounted once more; prints what it found
database() (
	pg=/mnt/copy/pg log=/mnt/copy/copy.log
	finish() {
		rc=$?
		[ $rc = 0 ] || cat $W/database.log $log
		as_postgres pg_ctl -D $pg -m immediate stop >/dev/null 2>&1
		umount /mnt/copy
		exit $rc
	}
	# A condition around this function turns "set -e" off: each step says itself that it failed.
	trap - ERR
	exec 3>$W/database.log 2>&3
	mount /dev/mapper/copy /mnt/copy || exit 1
	: >$log
	chown postgres $log
	install -d -o postgres -g postgres /tmp/copy-socket || exit 1
	trap finish EXIT
	# The image is that of a running server; its lock names a process that is alive on this machine, too.
	rm -f $pg/postmaster.pid
	low 10 as_postgres pg_ctl -D $pg -l $log -w -t 120 -s -o "-k /tmp/copy-socket -c fsync=off -c shared_buffers=16MB" start >&3 || exit 1
	as_postgres psql -h /tmp/copy-socket -X -A -t -F ' ' postgres -c 'select (select sum(abalance) from pgbench_accounts),
		(select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers),
		(select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_history)' >$W/sums || exit 1
	read -r a b t h n <$W/sums || exit 1
	as_postgres pg_ctl -D $pg -w -s -m fast stop >&3 || exit 1
	low 10 as_postgres pg_checksums --check -D $pg >&3 || exit 1
	if [ "$a" != "$b" ] || [ "$a" != "$t" ] || [ "$a" != "$h" ]; then
		echo "the sums differ: $a $b $t $h" >&3
		exit 1
	fi
	[ "$n" -gt 0 ] || exit 1
	echo "$n transactions, all four sums $a"
)

# Every write's latency at /dev/mapper/$DEV: from the kernel's events of submission and completion.
TRACING=/sys/kernel/tracing
follow_latency() {
	local numbers event
	numbers=$(dmsetup info -c --noheadings --separator ' ' -o major,minor $DEV)
	echo 0 >$TRACING/tracing_on
	echo mono >$TRACING/trace_clock
	echo 8192 >$TRACING/buffer_size_kb
	for event in block_bio_queue block_bio_complete; do
		echo "dev == $((${numbers% *} << 20 | ${numbers#* }))" >$TRACING/events/block/$event/filter
		echo 1 >$TRACING/events/block/$event/enable
	done
	echo 1 >$TRACING/tracing_on
	cat $TRACING/trace_pipe >$W/events &
	latency_pid=$!
	echo "realtime $EPOCHREALTIME" >$TRACING/trace_marker
}
end_latency() {
	sleep 3
	echo "realtime $EPOCHREALTIME" >$TRACING/trace_marker
	echo 0 >$TRACING/tracing_on
	sleep 1
	kill $latency_pid 2>/dev/null || :
	wait $latency_pid 2>/dev/null || :
	step "latencies from $(wc -l <$W/events) events"
	awk -f /presnap/demo/latency.awk file=1 $W/states file=2 $W/events | sort -k1,1n -k2,2 -k3,3n |
		awk '{if ($1 " " $2 != key) {if (n) show(); key = $1 " " $2; n = 0} v[++n] = $3}
			function show(  k) {k = int(n * 0.99); if (k < n * 0.99) k++; printf "%s %.0f %d\n", key, v[k], n}
			END {if (n) show()}' >$W/latency
	if grep -q LOST $W/events; then step "note: events were lost, the latencies are of the rest: $(grep LOST $W/events | head -n 3)"; fi
}
