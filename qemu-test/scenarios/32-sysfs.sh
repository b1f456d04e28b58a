# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# file: qemu-test/blobs:/presnap/blobs
# file: docs/sysfs.md:/presnap/sysfs.md
# timeout: 300
# cost: 20
# The files in sysfs: every knob with its default, the ends of its range, and what it must refuse; models good and bad.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region)
presnap format --origin "$O" "$R" --force
dmsetup create p --table "0 $(sectors "$O") presnap $O $R"
S=/sys/block/$(basename "$(readlink -f /dev/mapper/p)")/presnap
[ -d "$S" ] || S=/sys/block/dm-0/presnap
# put FILE TEXT: in one write, which bash's printf does not do for several lines
put() {
	case $2 in
	*$'\n'?*) printf '%s' "$2" | dd of="$S/$1" bs=64k iflag=fullblock conv=notrunc status=none ;;
	*) printf '%s' "$2" >"$S/$1" ;;
	esac
}
# takes KNOB WRITTEN SHOWN
takes() {
	put "$1" "$2" || die "$1 does not take '$2'"
	eq "$(cat "$S/$1")" "$3" "$1 after '$2'"
}
# refuses KNOB TEXT...: each one, and the value stays
refuses() {
	local knob=$1 before text
	shift
	before=$(cat "$S/$knob")
	for text in "$@"; do
		if (put "$knob" "$text") 2>/tmp/said; then die "$knob takes '${text:0:60}'"; fi
		grep -q 'Invalid argument' /tmp/said || die "$knob '${text:0:60}': $(cat /tmp/said)"
	done
	eq "$(cat "$S/$knob")" "$before" "$knob after bad values"
}
LONG=$(printf '1%.0s' $(seq 4000))
FEW=(x -1 '1 1' 18446744073709551616 "$LONG")
GARBAGE=(x -1 +1 0x10 1.5 1e3 '1 1' '1,1' '1;' $'1\n1' $'\t\n' $'\n' ' ' ünïcode 18446744073709551616 99999999999999999999999 "$LONG" "$LONG$LONG$LONG")

# name default least most
numbers='threshold_permille 150 0 1000
guard_threshold_permille 300 0 1000
horizon_ms 60000 1 86400000
tick_ms 200 10 60000
lead_ms 2000 0 600000
staging_budget_blocks 0 0 4294967295
copy_bandwidth_kib 0 0 1099511627776
freeze_budget_us 1000 0 60000000
schedule_ms 0 0 31622400000
trigger_ops 0 0 18446744073709551614
trigger_dirty_blocks 0 0 18446744073709551614
min_distance_ms 1000 0 86400000
intent_clean_ms 60000 10 86400000
guard_timeout_ms 60000 0 86400000
low_water_permille 100 0 1000'
# name default words...
words='predictor ewma off age ewma stream model
dry_run 0 0 1
scope delta delta image
mirror auto auto off force
drop_oldest 0 0 1'

known="op dirty_blocks used_slots total_slots areas_active region_uuid staged_blocks superset_blocks intent_extents stats model"
# So that a number here does not start a snapshot.
quiet() { put schedule_ms 0; put trigger_ops 0; put trigger_dirty_blocks 0; }
while read -r name default min max; do
	known+=" $name"
	eq "$(cat "$S/$name")" "$default" "default of $name"
	takes "$name" "$max" "$max"
	takes "$name" "$min" "$min"
	takes "$name" "$default" "$default"
	takes "$name" $' \t'"$default"$'\n' "$default"
	case $name in
	tick_ms | freeze_budget_us) refuses "$name" "${GARBAGE[@]}" ;;
	*) refuses "$name" "${FEW[@]}" ;;
	esac
	[ "$min" = 0 ] || refuses "$name" $((min - 1))
	case $max in
	18446744073709551614) refuses "$name" 18446744073709551615 ;;
	*) refuses "$name" $((max + 1)) ;;
	esac
	[ "$name" = freeze_budget_us ] || refuses "$name" unlimited
	quiet
done <<<"$numbers"
takes freeze_budget_us UnLimited unlimited
takes freeze_budget_us 1000 1000
refuses freeze_budget_us unlimite unlimited1 'unlimited 1'
while read -r name default values; do
	known+=" $name"
	eq "$(cat "$S/$name")" "$default" "default of $name"
	for w in $values; do
		takes "$name" "$w" "$w"
		takes "$name" "${w^^}"$'\n' "$w"
	done
	refuses "$name" 2 "${default}x" "$default $default" "$LONG" $'\n'
	takes "$name" "$default" "$default"
done <<<"$words"
for f in "$S"/*; do
	case " $known " in *" ${f##*/} "*) ;; *) die "$f is not in this test" ;; esac
done
for f in "$S"/* "$S"/stats/* "$S"/model/*; do
	[ -d "$f" ] || grep -q "^| \`${f##*/}\` |" /presnap/sysfs.md || die "$f is not in docs/sysfs.md"
done
[ "$(dmsetup message p 0 list)" = - ] || die "a knob's value has started a snapshot: $(dmsetup message p 0 list)"
ok "knobs"

for f in op dirty_blocks used_slots total_slots areas_active region_uuid staged_blocks stats/hits stats/region_bytes model/state model/error; do
	[ -n "$(cat "$S/$f")" ] || die "$f is empty"
	if (put "$f" 1) 2>/dev/null; then die "$f can be written"; fi
done
for f in model/commit model/rollback model/blob; do
	if cat "$S/$f" >/dev/null 2>&1; then die "$f can be read"; fi
done
grep -qE '^[0-9a-f]{32}$' "$S/region_uuid" || die "region_uuid"
ok "files that are only read, or only written"

# A scope given by the table is what the knob shows, and the knob can change it.
dmsetup reload p --table "$(dmsetup table p) 2 scope image"
dmsetup resume p
eq "$(cat "$S/scope")" image "scope of the table"
takes scope delta delta
takes tick_ms 77 77
dmsetup suspend p
[ ! -e "$S" ] || die "the files are there while suspended"
dmsetup resume p
eq "$(cat "$S/tick_ms")" 77 "a knob after suspend and resume"
ok "knobs survive suspend and reload"

# Models.
B=/presnap/blobs
M=$S/model
upload() { cat "$B/$1" >"$M/blob"; }
commit() { echo 1 >"$M/commit"; }
# no WORDS COMMAND...: the command fails with EINVAL and model/error has the words
no() {
	local words=$1
	shift
	if ("$@") 2>/tmp/said; then die "should have been refused ($words)"; fi
	grep -q 'Invalid argument' /tmp/said || die "$words: $(cat /tmp/said)"
	case $(cat "$M/error") in *"$words"*) ;; *) die "error is '$(cat "$M/error")', not '$words'" ;; esac
}
back() { echo 1 >"$M/rollback"; }
eq "$(cat "$M/state")" none "state without a model"
eq "$(cat "$M/error")" - "error without a refusal"
no "nothing was uploaded" commit
no "there is no model to go back to" back
for file in commit rollback; do
	for text in 0 2 yes '' $'\n' 11 "$LONG"; do
		[ -n "$text" ] || continue
		if (put model/$file "$text") 2>/dev/null; then die "$file takes '${text:0:20}'"; fi
	done
done
if (cat "$B/vectors" >"$M/vectors") 2>/tmp/said; then die "vectors without a model"; fi
grep -q 'No data available' /tmp/said || die "vectors without a model: $(cat /tmp/said)"

crc() { dd if="$B/$1" bs=1 skip=$(($(stat -c %s "$B/$1") - 4)) status=none | od -An -t x4 | tr -d ' '; }
# model_is NAME GENERATION: that model answers, bit for bit as the engine in userspace
model_is() {
	case $(cat "$M/state") in
	"$1 schema="*" crc=$(crc "$1.psm") generation=$2") ;;
	*) die "state is '$(cat "$M/state")', not $1 $(crc "$1.psm") $2" ;;
	esac
	cat "$B/vectors" >"$M/vectors"
	cat "$M/vectors" >/tmp/answers
	cmp /tmp/answers "$B/$1.answers" || die "the kernel's $1 answers otherwise than the engine's"
}
upload linear.psm
commit
model_is linear 1
upload mlp.psm
model_is linear 1
commit
model_is mlp 2
eq "$(cat "$M/error")" - "error after a good commit"
no "nothing was uploaded" commit
ok "good models: their answers are those of userspace, bit for bit"

n=0
while read -r file text; do
	upload "$file"
	no "$text" commit
	n=$((n + 1))
done <"$B/list"
model_is mlp 2
[ "$n" -ge 15 ] || die "only $n bad blobs"
# A commit after a refused one needs a new upload.
no "nothing was uploaded" commit
# Larger than 64 KiB: the write fails, and so does the commit of what was taken.
{ cat "$B/mlp.psm"; head -c 70000 /dev/zero; } >/tmp/big
if cat /tmp/big 2>/tmp/said >"$M/blob"; then die "a blob of 70 kB is taken"; fi
no "bytes follow the end of the model" commit
# Not from front to back.
upload mlp.psm
no "the blob was not written from front to back" dd if="$B/mlp.psm" of="$M/blob" bs=100 seek=9 count=1 conv=notrunc
# Piecewise, from front to back.
dd if="$B/linear.psm" of="$M/blob" bs=7 conv=notrunc status=none
commit
model_is linear 3
ok "$n kinds of bad blobs are refused with words, the model in use stays"

back
model_is mlp 4
no "there is no model to go back to" back
model_is mlp 4
put predictor model
for size in 1 2 23 25 47; do
	if (dd if="$B/vectors" of="$M/vectors" bs=$size count=1 conv=notrunc) 2>/tmp/said; then die "$size bytes of vectors are taken"; fi
	grep -q 'Invalid argument' /tmp/said || die "vectors of $size bytes: $(cat /tmp/said)"
done
if (dd if="$B/vectors" of="$M/vectors" bs=24 count=1 seek=1024 conv=notrunc) 2>/tmp/said; then die "vector 1024 is taken"; fi
dd if="$B/vectors" of="$M/vectors" bs=24 count=1 seek=1023 conv=notrunc status=none
eq "$(wc -c <"$M/vectors")" 2048 "bytes of 1024 answers"
# More than a page in one write.
for _ in 1 2 3 4 5 6; do cat "$B/vectors"; done >/tmp/many
dd if=/tmp/many of="$M/vectors" bs=64k conv=notrunc status=none
cat "$M/vectors" >/tmp/answers
for _ in 1 2 3 4 5 6; do cat "$B/mlp.answers"; done | cmp - /tmp/answers || die "answers to 1020 vectors"
model_is mlp 4
ok "rollback, and vectors of odd sizes"
dmsetup remove p
