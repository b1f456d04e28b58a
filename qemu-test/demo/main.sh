# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# The main job, in the guest; scripts/demo starts it, and says the sizes (demo/settings). Disks: origin, region, replica,
# and mail, to and from the host. Leaves report.json and table.txt in /out.
. /presnap/lib.sh
. /presnap/demo/settings
# shellcheck source=proof.sh
. /presnap/demo/proof.sh

W=/tmp/demo DEV=data MNT=/mnt/data PGDATA=/mnt/data/pg
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mkdir -p $W $MNT
failures=0

step() { printf '[demo +%ss] %s\n' "$(cut -d. -f1 /proc/uptime)" "$*"; }
# await WHAT PID: waits for a job's end and says every ten seconds that it is still at it
await() {
	local what=$1 pid=$2 said=$SECONDS
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if [ $((SECONDS - said)) -ge 10 ]; then
			said=$SECONDS
			step "... $what"
		fi
	done
	wait "$pid"
}
during() { # during WHAT COMMAND...
	local what=$1
	shift
	"$@" &
	await "$what" $!
}
# logged NAME COMMAND...: output to a file that is shown only on failure
logged() {
	local log=$W/$1.log
	shift
	"$@" >"$log" 2>&1 </dev/null || {
		tail -n 40 "$log"
		die "$*"
	}
}
# Its stderr is no terminal, so that it paints no progress on the console.
presnap() { command presnap "$@" 2> >(cat >&2); }
as_postgres() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/tmp "$@"; }
knob() { presnap set $DEV "$1" "$2"; }
value() { cat "/sys/block/$DM/presnap/$1"; }
state() { dmsetup message $DEV 0 state "$1"; }
sealed() { dmsetup message $DEV 0 list | awk -v after="$1" '$2 == "sealed" && $1 > after {print $1}' | sort -n; }

step "kernel $(uname -r), $(nproc) processors, emulated: the times below are not performance"
load
O=$(serial_disk origin) R=$(serial_disk region) S=$(serial_disk replica)
presnap format --origin "$O" "$R"
presnap open $DEV "$O" "$R" --scope image
DM=$(basename "$(readlink -f /sys/dev/block/"$(dmsetup info -c --noheadings --separator : -o major,minor $DEV)")")
knob dry_run 1 # It watches from the start, but copies nothing ahead yet.

step "ext4 and PostgreSQL on /dev/mapper/$DEV ($(($(sectors /dev/mapper/$DEV) / 2048)) MiB)"
logged mkfs mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/$DEV
mount /dev/mapper/$DEV $MNT
install -d -o postgres -g postgres -m 700 $PGDATA
install -o postgres -g postgres /dev/null $MNT/server.log
during initdb logged initdb as_postgres initdb -D $PGDATA --no-locale -E UTF8 -A trust --no-sync --data-checksums --wal-segsize=4
cat >>$PGDATA/postgresql.conf <<END
listen_addresses = ''
unix_socket_directories = '/run/postgresql'
shared_buffers = 48MB
min_wal_size = 8MB
max_wal_size = 48MB
checkpoint_timeout = 30s
END
chown postgres:postgres /run/postgresql
logged pg_start as_postgres pg_ctl -D $PGDATA -l $MNT/server.log -w -t 120 start
step "pgbench: $((SCALE * 100000)) accounts"
during "pgbench makes its tables" logged pgbench_init as_postgres pgbench -i -q -s "$SCALE" -h /run/postgresql postgres
sync
setpriv --reuid=postgres --regid=postgres --clear-groups pgbench -h /run/postgresql -n -c "$CLIENTS" -j 1 -R "$RATE" -T 36000 -P 10 postgres >$W/load 2>&1 &
load_pid=$!
wait_for 60 grep -q progress $W/load
step "the load runs: $CLIENTS clients, $RATE transactions/s asked for"
running() { kill -0 $load_pid 2>/dev/null || { tail -n 20 $W/load; die "the load has ended"; }; }

step "recording its I/O for $RECORD_SECONDS s"
presnap trace record $DEV -o $W/demo.trace --seconds "$RECORD_SECONDS" --new-only >$W/record.log 2>&1 &
record=$!
# The first send is full, so it needs an image; taken under load like all the others.
step "the first snapshot, and the full send"
baseline=$(presnap snapshot $DEV --scope image --no-wait)
during "snapshot $baseline is being sealed" wait_for 180 sh -c "dmsetup message $DEV 0 state $baseline | grep -q '^$baseline sealed\|dropped'"
step "snapshot $(state "$baseline")"
replicate "$baseline" 0
prove "$baseline"
presnap rm $DEV "$baseline"
await "recording" $record || { cat $W/record.log; die "presnap trace record"; }
step "$(tail -n 1 $W/record.log)"
running

# The host trains, where nothing is emulated; a disk that both see carries the trace there and the model back.
step "the host trains"
mail=$(serial_disk mail)
dd if=$W/demo.trace of="$mail" bs=1M seek=1 oflag=direct conv=sync status=none
printf 'trace %s\n' "$(stat -c %s $W/demo.trace)" | dd of="$mail" bs=4k oflag=direct conv=sync status=none
during "training on the host" wait_for 900 sh -c "dd if=$mail bs=4k count=1 skip=1 iflag=direct status=none | grep -aq '^models '"
dd if="$mail" bs=4k skip=2 count=254 iflag=direct status=none | tar -C $W -x
[ -s $W/models/demo.psm ] || die "the training failed"
presnap model push $DEV $W/models/demo.psm
presnap model verify $DEV $W/models/demo.psm --vectors $W/models/demo.vectors
MODEL=$(value model/state | cut -d' ' -f1)
running

follow_latency
last=$baseline
phase() { # phase PREDICTOR NAME
	local first n=0 id used stopper until
	knob predictor "$1"
	knob dry_run 0
	first=$last
	: >$W/seen
	step "$SNAPSHOTS snapshots by schedule, one in $((SCHEDULE_MS / 1000)) s, predictor $2"
	knob schedule_ms "$SCHEDULE_MS"
	# Snapshots go on being taken while earlier ones are proven and deleted; this ends the schedule.
	(
		while [ "$(sort -u $W/seen | wc -l)" -lt "$SNAPSHOTS" ]; do
			sleep 0.3
			sealed "$first" >>$W/seen
		done
		knob schedule_ms 0
		# What comes next is not mixed: nothing is staged for the first snapshot of the next phase.
		knob predictor off
	) &
	stopper=$!
	until=$((SECONDS + SNAPSHOTS * (SCHEDULE_MS / 1000 + 60)))
	while [ $n -lt "$SNAPSHOTS" ]; do
		id=$(sealed "$last" | head -n 1)
		if [ -z "$id" ]; then
			running
			[ $SECONDS -lt $until ] || die "the snapshots did not come: $(dmsetup status $DEV)"
			sleep 0.3
			continue
		fi
		while [ $((last + 1)) -lt "$id" ]; do
			last=$((last + 1))
			[ "$(state $last | cut -d' ' -f2)" = unknown ] || step "snapshot $(state $last)"
		done
		state "$id" >>$W/states
		used=$(presnap show $DEV "$id" --json | awk -F'"' '$2 == "predictor" {print $4}')
		[ "$used" = "$1" ] || die "snapshot $id was made with predictor $used, not $1"
		echo "$id $used" >>$W/predictors
		replicate "$id" "$replica_holds"
		prove "$id"
		presnap rm $DEV "$id"
		last=$id
		n=$((n + 1))
	done
	wait $stopper
	running
}
phase model "$MODEL"
phase off off
end_latency

running
kill -TERM $load_pid
wait $load_pid || :
step "the end of the load: $(awk '/^progress:/ {n++; tps += $4; for (i = 2; i <= NF; i++) if ($i ~ /^failed/) failed += $(i - 1)}
	END {printf "%.1f transactions/s, %d failed", tps / n, failed}' $W/load)"
grep -v '^progress:' $W/load | tail -n 5
! grep -q 'progress.* [1-9][0-9]* failed' $W/load || die "transactions failed"
logged pg_stop as_postgres pg_ctl -D $PGDATA -w -m fast stop
umount $MNT
presnap stats $DEV
presnap close $DEV
presnap check --data "$R" || failures=$((failures + 1))

report() { awk -v model="$MODEL" -v kernel="$(uname -r)" -v baseline="$baseline" -v table="$1" -f /presnap/demo/report.awk file=1 $W/predictors file=2 $W/latency file=3 $W/proofs file=4 $W/states; }
report 0 >/out/report.json
report 1 >/out/table.txt
echo "demo: table"
cat /out/table.txt
echo "demo: end of table"
[ $failures = 0 ] || die "$failures proofs failed"
ok "the main job: $(wc -l <$W/states) snapshots replicated and proven"
