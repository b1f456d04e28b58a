# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Writers, and a file that gets every write too: what the origin has to hold, whatever presnap says. Runs in the guest,
# after lib.sh; wants $O, the origin, and the device p on it, both of 32 MiB.

# oracle: fills the origin with noise
oracle() {
	dd if=/dev/urandom of=/tmp/noise bs=1M count=8 status=none
	for _ in 1 2 3 4; do cat /tmp/noise; done >/tmp/want
	dd if=/tmp/want of="$O" bs=1M oflag=direct status=none
}
# put BLOCK COUNT SKIP: blocks of noise, from SKIP on, to p, then to the oracle; 64 KiB at a time
put() {
	dd if=/tmp/noise of=/dev/mapper/p bs=64k iflag=skip_bytes,count_bytes oflag=direct,seek_bytes conv=notrunc status=none \
		seek=$(($1 * 4096)) count=$(($2 * 4096)) skip=$(($3 * 4096)) || return 1
	dd if=/tmp/noise of=/tmp/want bs=64k iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc status=none \
		seek=$(($1 * 4096)) count=$(($2 * 4096)) skip=$(($3 * 4096))
}
# writers BLOCK COUNT: four of them, each over and over in a quarter of these blocks, never the same twice running
writers() {
	local i
	rm -f /tmp/stop /tmp/write-failed /tmp/round-*
	pids=()
	for i in 0 1 2 3; do
		echo 0 >/tmp/round-$i
		(
			trap - ERR
			n=0
			until [ -e /tmp/stop ]; do
				n=$((n + 1))
				put $(($1 + i * $2 / 4)) $(($2 / 4)) $(((n * 37 + i * 101) % 1000)) || { echo "writer $i" >>/tmp/write-failed; exit 1; }
				echo $n >/tmp/round-$i.new
				mv /tmp/round-$i.new /tmp/round-$i
			done
		) &
		pids+=($!)
	done
}
# another_round: every writer has ended a round that it began after this was called
another_round() {
	local i
	declare -A was
	for i in 0 1 2 3; do was[$i]=$(cat /tmp/round-$i); done
	for i in 0 1 2 3; do
		wait_for 30 sh -c "[ \$(cat /tmp/round-$i) -ge $((was[$i] + 2)) ] || [ -e /tmp/write-failed ]"
	done
}
# stop WHAT: ends the writers; none may have failed, and the origin is what they wrote
stop() {
	touch /tmp/stop
	wait "${pids[@]}" || :
	[ ! -e /tmp/write-failed ] || die "$1: writes failed: $(cat /tmp/write-failed)"
	dd if="$O" of=/tmp/is bs=1M iflag=direct status=none
	cmp /tmp/is /tmp/want || die "$1: the origin is not what was written"
	ok "$1: no write failed, the origin is what was written"
}

state_is() { dmsetup message p 0 state "$1" | grep -q "^$1 $2"; }
# snap [ARG...]: takes a snapshot that has to be sealed, sets id
snap() {
	id=$(dmsetup message p 0 snapshot "$@")
	wait_for 30 sh -c "dmsetup message p 0 state $id | grep -q 'sealed\|dropped'"
	state_is "$id" sealed || die "snapshot $id: $(dmsetup message p 0 state "$id")"
}
delete() {
	dmsetup message p 0 delete "$1"
	wait_for 10 sh -c "! dmsetup message p 0 list | grep -q '^$1 '"
}
# ship ID BASE WHAT: the delta, applied to the replica, makes it /tmp/at
ship() {
	presnap send p "$1" --base "$2" 2>/dev/null | presnap receive /dev/replica 2>/dev/null
	cmp -n 33554432 /dev/replica /tmp/at || die "$3: the replica is not the origin at T0($1)"
	ok "$3: delta $1 is whole"
}
image() { dmsetup create v --readonly --table "0 65536 presnap-image /dev/mapper/p $1"; }
status() { dmsetup status p | cut -d' ' -f4-; }
# said TEXT: in the kernel's log since the mark
said() {
	log_since >/tmp/said
	grep -q "presnap.*$1" /tmp/said || die "the log does not say '$1': $(cat /tmp/said)"
}
# event_begin, event_end: dmsetup wait returns, and the number of the event has grown
events() { dmsetup info -c --noheadings -o events p | tr -d ' '; }
event_begin() {
	before=$(events)
	timeout 60 dmsetup wait p "$before" >/dev/null &
	waiter=$!
	log_mark
}
event_end() {
	wait "$waiter" || die "dmsetup wait has not seen the event"
	[ "$(events)" -gt "$before" ] || die "the event number has not grown"
}
