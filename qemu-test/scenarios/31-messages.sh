# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# timeout: 300
# cost: 10
# Messages: bad ones are refused with an error number and words; what snapshots may be deleted, held and released.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
N=$(sectors "$O")
presnap format --origin "$O" "$R" --force
dmsetup create p --table "0 $N presnap $O $R"
msg() { dmsetup message -- p 0 "$@"; }
# bad ERROR WORDS MESSAGE...: refused with this error (dmsetup shows its text) and these words in the log
bad() {
	local error=$1 words=$2 said
	shift 2
	log_mark
	if said=$(msg "$@" 2>&1); then die "should have been refused: $*"; fi
	case $said in *"$error"*) ;; *) die "$*: not '$error' but: $said" ;; esac
	said=$(log_since)
	case $said in *"$words"*) ;; *) die "$*: not '$words' but: $said" ;; esac
}
EINVAL='Invalid argument' EBUSY='resource busy' ENOENT='No such file'
sealed() { msg state "$1" | grep -q "^$1 sealed"; }
snap() { # snap [ARG...]: takes one and waits for it
	id=$(msg snapshot "$@")
	wait_for 20 sealed "$id"
}

bad "$EINVAL" "unrecognised message received" frobnicate
bad "$EINVAL" "unrecognised message received" snapshots
bad "$EINVAL" "unrecognised message received" "$(printf 'x%.0s' $(seq 2000))"
bad "$EINVAL" "Unsupported message sent to DM core" @frobnicate
if dmsetup message p "$((N + 8))" list 2>/tmp/said; then die "a message behind the end of the device"; fi
for verb in state delete hold release; do
	bad "$EINVAL" "incorrect number of message arguments" $verb
	bad "$EINVAL" "incorrect number of message arguments" $verb 1 2
done
for id in 0 -1 +1 1x x 0x1 4294967296 18446744073709551617; do
	bad "$EINVAL" "a snapshot id is a number from 1 to 4294967295" state $id
done
for verb in delete hold release; do bad "$EINVAL" "a snapshot id is a number from 1 to 4294967295" $verb 0; done
for verb in list abort sync; do bad "$EINVAL" "incorrect number of message arguments" $verb 1; done
bad "$EINVAL" "incorrect number of message arguments" snapshot scope
bad "$EINVAL" "incorrect number of message arguments" snapshot within 5 scope
bad "$EINVAL" "unknown option; snapshot knows scope, within and freeze_budget" snapshot colour red
bad "$EINVAL" "unknown option" snapshot 1 2
bad "$EINVAL" "scope must be delta or image" snapshot scope everything
for ms in -1 soon 86400001 18446744073709551616; do
	bad "$EINVAL" "within must be a number of milliseconds, at most 86400000" snapshot within $ms
done
for us in -1 much 60000001 99999999999999999999; do
	bad "$EINVAL" "freeze_budget must be a number of microseconds, at most 60000000, or unlimited" snapshot freeze_budget $us
done
bad "$EINVAL" "an option was given twice" snapshot scope delta SCOPE image
eq "$(msg list)" - "list without snapshots"
eq "$(msg STATE 1)" "1 unknown" "state of a snapshot that was never taken"
eq "$(msg state 4294967295)" "4294967295 unknown" "the highest id"
bad "$ENOENT" "there is no such snapshot" delete 1
bad "$ENOENT" "there is no such snapshot" hold 1
bad "$ENOENT" "the snapshot is not held" release 1
msg abort
msg Sync
ok "bad messages"

# One at a time.
eq "$(msg snapshot within 60000)" 1 "the first id"
bad "$EBUSY" "a snapshot is under way" snapshot
bad "$EBUSY" "a snapshot is under way" snapshot within 5
eq "$(msg state 1)" "1 pending" "state before T0"
dmsetup status p | grep -q ' 1:pending rw ' || die "status does not show the snapshot: $(dmsetup status p)"
bad "$ENOENT" "there is no such snapshot" delete 1
bad "$ENOENT" "there is no such snapshot" hold 1
msg ABORT
wait_for 5 sh -c 'dmsetup message p 0 state 1 | grep -qx "1 dropped:aborted"'
eq "$(msg list)" - "list after an abort"
dmsetup status p | grep -q ' 0 0 - rw ' || die "status after an abort: $(dmsetup status p)"
ok "an id in use, and abort"

# Its number is not used again; the statistics are there; options in any case and order.
dd if=/dev/urandom of=/dev/mapper/p bs=64k count=16 oflag=direct status=none
eq "$(msg snapshot FREEZE_BUDGET Unlimited within 100 Scope IMAGE)" 2 "the id after an aborted one"
wait_for 20 sealed 2
msg state 2 >/tmp/state
for key in scope=image base=0 op_first=1 delta_blocks=256 freeze_us= inflight_wait_us= stale_blocks= staged_valid_blocks= \
	final_copy_blocks= guarded_blocks= drained_blocks= copied_blocks_total= guard_stalls= mirrored_writes= hits= misses= wasted= seal_us= \
	op_last= t0_realtime_ns=; do
	grep -q " $key" /tmp/state || die "state lacks $key: $(cat /tmp/state)"
done
snap
snap scope delta
msg list >/tmp/list
cat /tmp/list
eq "$(cut -d' ' -f1-4 /tmp/list | tr '\n' ';')" "2 sealed image 0;3 sealed delta 2;4 sealed delta 3;" list
ok "list and state"

# The oldest only, and not while it is held.
bad "$EINVAL" "only the oldest snapshot can be deleted" delete 4
bad "$EINVAL" "only the oldest snapshot can be deleted" delete 3
bad "$ENOENT" "there is no such snapshot" delete 1
bad "$ENOENT" "there is no such snapshot" delete 5
msg hold 2
msg hold 2
msg hold 3
bad "$EBUSY" "the snapshot is held" delete 2
msg release 2
bad "$EBUSY" "the snapshot is held" delete 2
msg release 2
bad "$ENOENT" "the snapshot is not held" release 2
msg delete 2
wait_for 5 sh -c '! dmsetup message p 0 list | grep -q "^2 "'
bad "$ENOENT" "there is no such snapshot" delete 2
eq "$(msg state 2)" "2 unknown" "state of a deleted snapshot"
bad "$EBUSY" "the snapshot is held" delete 3
msg release 3
msg delete 3
wait_for 5 sh -c '! dmsetup message p 0 list | grep -q "^3 "'
msg delete 4
wait_for 5 sh -c '[ "$(dmsetup message p 0 list)" = - ]'
wait_for 5 sh -c '[ "$(cat /sys/block/dm-0/presnap/used_slots)" = 0 ]'
ok "delete, hold and release; no slot is left in use"

# Suspended: questions are answered, and a snapshot can be taken.
dd if=/dev/urandom of=/dev/mapper/p bs=4k count=4 oflag=direct status=none
dmsetup suspend p
eq "$(msg list)" - "list while suspended"
eq "$(msg state 9)" "9 unknown" "state while suspended"
timeout 20 bash -c '. /presnap/lib.sh; id=$(dmsetup message p 0 snapshot); wait_for 15 sh -c "dmsetup message p 0 state $id | grep -q sealed"' ||
	die "no snapshot while suspended"
dmsetup resume p
# The deleted 4 stays the base: the map of what changed since it is whole.
msg list | grep -q '^5 sealed delta 4 .* 4 [0-9]*$' || die "the snapshot taken while suspended: $(msg list)"
dmsetup remove p
presnap check --data "$R"
ok "messages while suspended"
