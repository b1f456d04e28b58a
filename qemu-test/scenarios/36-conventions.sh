# SPDX-License-Identifier: GPL-2.0-only
# vm: shared
# nvme: 64M:origin 64M:region 64M:origin2 64M:region2
# modprobe: dm-delay
# timeout: 300
# cost: 20
# The conventions of device-mapper that users and libdm rely on, as far as 30-table, 31-messages and 33-lifecycle do not test them: each
# block begins with the convention, in quotes.
. /presnap/lib.sh
load
O=$(serial_disk origin) R=$(serial_disk region) R2=$(serial_disk region2)
N=$(sectors "$O")
ID=00112233445566778899aabbccddeeff
presnap format --origin "$O" --origin-id $ID "$R" --force >/dev/null 2>&1
devno() { lsblk -dno MAJ:MIN "$1" | tr -d ' '; }
create() { dmsetup create p --table "0 $N presnap $O $R$*"; }
events() { dmsetup info -c --noheadings -o events "${1:-p}"; }
sealed() { dmsetup message p 0 state "$1" | grep -q "^$1 sealed"; }
snap() {
	id=$(dmsetup message p 0 snapshot "$@")
	wait_for 20 sealed "$id"
}
soon() { timeout 5 "$@" || die "not within 5 s: $*"; }

# "Versioning: lvm2 reads target versions"; "Module params users know": there are none, every setting is a device's.
dmsetup targets | grep -Eq '^presnap +v1\.0\.0$' || die "the version of presnap: $(dmsetup targets)"
dmsetup targets | grep -Eq '^presnap-image +v1\.0\.0$' || die "the version of presnap-image: $(dmsetup targets)"
[ ! -e /sys/module/dm_presnap/parameters ] || die "module parameters: $(ls /sys/module/dm_presnap/parameters)"
# The core asks for dm-<type> when a table names a type that it does not know.
tr '\0' '\n' </presnap/dm-presnap.ko >/tmp/strings
for type in presnap presnap-image; do
	grep -qa "^alias=dm-$type\$" /tmp/strings || die "the module has no alias dm-$type"
done
ok "version, parameters, aliases"

# "Error path: set ti->error; core logs device-mapper: table: <dev>: <type>: <error> (-EINVAL)". Before that we log what the words were.
says() { # says ERROR NUMBER WORDS TABLE...: the line of the core, exactly, and ours with the words
	local error=$1 number=$2 words=$3 type
	shift 3
	type=$(cut -d' ' -f3 <<<"$*")
	log_mark
	if dmsetup create t --table "$*" 2>/tmp/said; then die "a bad table is taken: $*"; fi
	log_since >/tmp/log
	grep -Eq "device-mapper: table: [0-9]+:[0-9]+: $type: $error \($number\)\$" /tmp/log || { cat /tmp/log; die "not in the core's words: $error"; }
	[ -z "$words" ] || grep -Fq ": $error: $words" /tmp/log || { cat /tmp/log; die "the words are not named: $words"; }
}
says "scope must be delta or image" -EINVAL "4 on_error fail-writes scope everything" \
	"0 $N presnap $O $R 4 on_error fail-writes scope everything"
says "Unrecognised feature requested" -EINVAL '2 c\xf6lour red' "0 $N presnap $O $R 2 c"$'\xf6'"lour red"
says "Unrecognised feature requested" -EINVAL "2 $(printf 'x%.0s' $(seq 159))..." "0 $N presnap $O $R 2 $(printf 'x%.0s' $(seq 3000)) red"
says "Invalid number of feature arguments" -EINVAL "two scope" "0 $N presnap $O $R two scope"
says "Cannot get origin device" -ENOENT /dev/nothing "0 $N presnap /dev/nothing $R"
says "Cannot get region device" "-E[A-Z]*" 999:99 "0 $N presnap $O 999:99"
says "Region belongs to another origin" -EINVAL "" "0 $N presnap $O $R 2 origin_id ${ID%ff}00"
says "requires 2 arguments: <presnap device> <snapshot id>" -EINVAL "" "0 $N presnap-image $O"
says "Invalid snapshot id" -EINVAL 4294967296 "0 $N presnap-image $O 4294967296"
says "Not a presnap device" -ENODEV "$O" "0 $N presnap-image $O 1"
dmsetup create lin --table "0 $N linear $O 0"
mount_point=/tmp/m
mkdir -p $mount_point
mke2fs -q -F "$R2" 8192
mount "$R2" $mount_point
# A device that somebody has mounted is not ours to write to.
says "Cannot get region device" -EBUSY "$R2" "0 $N presnap $O $R2"
umount $mount_point
dmsetup remove lin
create
log_mark
if dmsetup message p 0 snapshot scope everything 2>/dev/null; then die "a bad message is taken"; fi
log_since | grep -q ': scope must be delta or image: snapshot scope everything$' || die "the message is not named: $(log_since)"
dmsetup remove p
ok "errors name what they are about"

# "Devices accepted as path or major:minor", also by way of links.
ln -s "$O" /tmp/link
dmsetup create p --table "0 $N presnap /tmp/link $(devno "$R")"
eq "$(dmsetup table p)" "0 $N presnap $(devno "$O") $(devno "$R")" "table of a device named by a link"
deps=$(dmsetup deps -o devno p)
for d in "$O" "$R"; do
	case $deps in *"($(devno "$d" | tr : ,))"* | *"($(devno "$d" | sed 's/:/, /'))"*) ;; *) die "$d is not among the dependencies: $deps" ;; esac
done
expect_fail -m "Can't open blockdev" mount "$O" $mount_point
ok "devices, and that they are claimed"

# "Bio rules: num_flush_bios, flush_supported, num_discard_bios, discards_supported, iterate_devices over all devs, io_hints": a file system sees the
# very limits that it would see through linear. The region's do not count: no bio of the foreground goes there as it is. Only atomic writes
# are not passed on.
limits() { # limits NAME: of the mapped device, each with its file
	local q
	q=/sys/block/$(dmsetup info -c --noheadings -o blkdevname "$1")/queue
	(cd "$q" && grep -s . -- * | grep -Ev '^(nr_requests|scheduler|wbt_lat_usec|iostats|io_timeout|read_ahead_kb|atomic_write_[a-z_]*):' | sort)
}
limits p >/tmp/limits
eq "$(cat /sys/block/dm-0/queue/atomic_write_max_bytes)" 0 "the largest atomic write"
dmsetup remove p
dmsetup create lin --table "0 $N linear $O 0"
limits lin >/tmp/limits-linear
dmsetup remove lin
[ "$(wc -l </tmp/limits)" -ge 20 ] || die "only these limits: $(cat /tmp/limits)"
diff /tmp/limits-linear /tmp/limits || die "other limits than linear has"
grep -q '^discard_max_bytes:[1-9]' /tmp/limits || die "no discards: $(cat /tmp/limits)"
ok "$(wc -l </tmp/limits) limits, those of linear"

# "Status IMA: target_name=%s,target_version=%u.%u.%u then ,key=value... ended by ;". scripts/vm boots with ima_policy=critical_data.
measured() { # measured EVENT: the last of these, as text
	awk -v e="$1" '$5 == e {last = $6} END {print last}' /sys/kernel/security/ima/ascii_runtime_measurements | xxd -r -p
}
ima() { # ima TEXT: the measurement of the last table that was loaded ends like this
	case $(measured dm_table_load) in *"$1") ;; *) die "measured: $(measured dm_table_load), not: $1" ;; esac
}
if [ -r /sys/kernel/security/ima/ascii_runtime_measurements ]; then
	# What was measured once already is not again: hence a name of its own.
	dmsetup create p --uuid PRESNAP-measured --table "0 $N presnap $O $R"
	devices="origin_name=$(devno "$O"),region_name=$(devno "$R")"
	ima ",minor_count=1,num_targets=1;target_index=0,target_begin=0,target_len=$N,target_name=presnap,target_version=1.0.0,$devices,valid=y;"
	case $(measured dm_device_resume) in *"name=p,"*"active_table_hash=sha256:"*) ;; *) die "resume: $(measured dm_device_resume)" ;; esac
	snap scope image
	dmsetup reload p --table "0 $N presnap $O $R 4 SCOPE image on_error Fail-Writes"
	ima ",target_name=presnap,target_version=1.0.0,$devices,scope=image,on_error=fail-writes,valid=y;"
	dmsetup clear p
	dmsetup create v --readonly --table "0 $N presnap-image /dev/mapper/p $id"
	ima ",target_name=presnap-image,target_version=1.0.0,presnap_name=$(devno /dev/mapper/p),id=$id,valid=y;"
	dmsetup remove v
	dmsetup remove p
	ok "measurements: $(measured dm_table_load)"
else
	case $(uname -r) in *+deb*) die "no measurements by IMA" ;; esac
	note "this kernel has no IMA"
fi

# "Events: dm_table_event() on every state change a human must act on; edge-triggered, one per resume; a resume always raises one".
create
was=$(events)
[ "$was" -ge 1 ] || die "no event at the first resume"
gained() { # gained NUMBER WHAT: exactly so many since the last time
	eq "$(($(events) - was))" "$1" "events $2"
	was=$(events)
}
dmsetup suspend p
gained 0 "of a suspend"
dmsetup resume p
gained 1 "of a resume"
dd if=/dev/urandom of=/dev/mapper/p bs=64k count=8 oflag=direct status=none
gained 0 "of writes"
(dmsetup wait p "$was" && dmsetup status p >/tmp/wait) &
snap scope image
gained 1 "of a seal"
wait_for 5 test -s /tmp/wait
grep -q "^0 $N presnap .* $id - rw " /tmp/wait || die "status after dmsetup wait: $(cat /tmp/wait)"
first=$id
dmsetup status p >/dev/null
dmsetup message p 0 list >/dev/null
gained 0 "of questions"
dropped=$(dmsetup message p 0 snapshot within 60000)
dmsetup message p 0 abort
wait_for 5 sh -c "dmsetup message p 0 state $dropped | grep -q dropped"
gained 1 "of a snapshot that was dropped"
dmsetup reload p --table "0 $N presnap $O $R"
gained 0 "of a load"
dmsetup resume p
gained 1 "of a resume with another table"
snap
gained 1 "of a seal after the table was swapped"
# The image's own device: its state changes when images are lost.
dmsetup create v --readonly --table "0 $N presnap-image /dev/mapper/p $first"
# "snapshots should carry DM_UDEV_LOW_PRIORITY_FLAG": how udev/56-dm-presnap.rules finds out.
rule() { dmsetup table -j "$(devno "$1" | cut -d: -f1)" -m "$(devno "$1" | cut -d: -f2)" --target presnap-image; }
[ -n "$(rule /dev/mapper/v)" ] || die "the rule of udev would not know an image"
eq "$(rule /dev/mapper/p)" "" "what the rule of udev asks, of a device"
image=$(events v)
dmsetup remove p
eq "$(dmsetup status v)" "0 $N presnap-image Invalid" "status of an image whose device is gone"
eq "$(($(events v) - image))" 1 "events of a lost image"
dmsetup remove v
ok "events"

# "Status: stable field order; a/b for usage, - for none". "status must not block when suspended or with noflush": and says the truth then.
create
for i in 1 2 3; do snap; done
status=$(dmsetup status p)
shape="^0 $N presnap [0-9]+/[0-9]+ [0-9]+ [0-9]+ [0-9]+ [0-9]+ (-|[0-9]+:[a-z]+) (rw|Invalid) (-|[a-z:,0-9-]+)\$"
want=$(awk '{print $7, $8}' <<<"$status")
for i in $(seq 10); do
	dmsetup status p --noflush
done >/tmp/status
eq "$(grep -Ec "$shape" /tmp/status)" 10 "status lines of the right shape"
eq "$(awk '{print $7, $8}' /tmp/status | sort -u)" "$want" "number of snapshots and the newest"
# A snapshot that was asked for shows at once.
id=$(dmsetup message p 0 snapshot within 60000)
eq "$(dmsetup status p | awk '{print $9}')" "$id:pending" "status right after a snapshot was asked for"
dmsetup message p 0 abort
wait_for 5 sh -c 'dmsetup status p | grep -q " - rw "'
dmsetup remove p
ok "status"

# "suspend --noflush --nolockfs must not block even if the lower device is suspended, and remove --force must swap in error (lvm2
# snapshot-remove-dmsetup.sh)".
dmsetup create low --table "0 $N linear $O 0"
dmsetup create p --table "0 $N presnap /dev/mapper/low $R"
snap
dmsetup suspend low
soon dmsetup suspend --noflush --nolockfs p
soon dmsetup status p >/dev/null
soon dmsetup table p >/dev/null
soon dmsetup message p 0 list >/dev/null
soon dmsetup resume p
dmsetup suspend --noflush --nolockfs p
soon dmsetup reload p --table "0 $N presnap /dev/mapper/low $R 2 scope image"
soon dmsetup resume p
# In use, so that it cannot go yet: an error target must take its place, and fail all I/O.
exec 5</dev/mapper/p
timeout 10 dmsetup remove --force p || :
dmsetup table p | grep -q '^0 [0-9]* error' || die "no error target after remove --force: $(dmsetup table p)"
expect_fail dd if=/dev/mapper/p of=/dev/null bs=4k count=1 iflag=direct
exec 5<&-
wait_for 5 sh -c '! dmsetup info p || dmsetup remove p'
dmsetup resume low
# The region was closed in order: nothing passes for changed.
dmsetup create p --table "0 $N presnap /dev/mapper/low $R"
dmsetup status p | grep -q ' rw -$' || die "status after remove --force: $(dmsetup status p)"
# With I/O of the worker held below: questions are still answered.
dd if=/dev/urandom of=/dev/mapper/p bs=1M count=16 oflag=direct status=none
dmsetup suspend low
id=$(soon dmsetup message p 0 snapshot freeze_budget 0)
sleep 0.5
soon dmsetup status p | grep -q " $id:[a-z]* rw " || die "status while the origin is suspended: $(dmsetup status p)"
soon dmsetup status p --noflush >/dev/null
soon dmsetup message p 0 state "$id" >/dev/null
dmsetup resume low
wait_for 20 sealed "$id"
dmsetup remove p
dmsetup remove low
presnap check --data "$R" >/dev/null 2>&1
ok "a suspended device below"

# The origin's size: it may grow below, and the device goes on; a shorter table is refused in words, and so is any other length than the
# region's when there is no live device (27-origin lets it grow).
half=$((N / 2))
dmsetup create low --table "0 $half linear $O 0"
presnap format --origin /dev/mapper/low "$R" --force >/dev/null 2>&1
dmsetup create p --table "0 $half presnap /dev/mapper/low $R"
dd if=/dev/urandom of=/dev/mapper/p bs=4k count=3 oflag=direct status=none
snap
dd if=/dev/urandom of=/dev/mapper/p bs=4k count=5 oflag=direct status=none
before=$(dmsetup status p)
dmsetup reload low --table "0 $N linear $O 0"
dmsetup resume low
eq "$(dmsetup status p)" "$before" "status after the origin has grown"
expect_fail -m "Region belongs to a larger origin: it does not shrink" dmsetup reload p --table "0 $((half - 8)) presnap /dev/mapper/low $R"
eq "$(dmsetup status p)" "$before" "status after a refused reload"
dmsetup reload p --table "0 $half presnap /dev/mapper/low $R 2 scope image"
dmsetup resume p
eq "$(dmsetup status p)" "$before" "status after a reload with other features"
dmsetup remove p
expect_fail -m "Region belongs to a smaller origin" dmsetup create p --table "0 $N presnap /dev/mapper/low $R"
expect_fail -m "Region belongs to a larger origin" dmsetup create p --table "0 $((half - 8)) presnap /dev/mapper/low $R"
dmsetup reload low --table "0 $((half - 8)) linear $O 0"
dmsetup resume low
expect_fail -m "Origin device is smaller than the target" dmsetup create p --table "0 $half presnap /dev/mapper/low $R"
dmsetup remove low
presnap format --origin "$O" --origin-id $ID "$R" --force >/dev/null 2>&1
ok "sizes"

# "words starting with @ belong to the core"; "dm-stats works on any bio-based target for free"; "Empty message received.", "Target message
# sector outside device."
create
refused() { # refused WORDS ARG...
	local words=$1
	shift
	log_mark
	if dmsetup message "$@" 2>/tmp/said; then die "should have been refused: $*"; fi
	log_since | grep -q "$words" || die "not '$words' but: $(log_since)"
}
refused "Empty message received" p 0 ''
refused "Target message sector outside device" p "$((N + 8))" list
refused "Unsupported message sent to DM core" p 0 @snapshot
refused "unrecognised message received: snapshots" p 0 snapshots
eq "$(dmsetup message p 0 @stats_create - /1 precise_timestamps histogram:1000000,1000000000)" 0 "the first set of statistics"
dd if=/dev/zero of=/dev/mapper/p bs=4k count=10 oflag=direct status=none
dmsetup message p 0 @stats_print 0 >/tmp/stats
eq "$(awk '{print $1, $6, $8}' /tmp/stats)" "0+$N 10 80" "writes and sectors that dm-stats has counted: $(cat /tmp/stats)"
dmsetup message p 0 @stats_delete 0
# Answers are text; a message without an answer prints nothing.
eq "$(dmsetup message p "$((N - 1))" list)" - "a message to the last sector"
eq "$(dmsetup message p 0 sync)" "" "the answer to sync"
# Removal that waits for the last opener.
exec 5</dev/dm-0
dmsetup remove --deferred p
dmsetup info p | grep -q 'DEFERRED REMOVE' || die "not deferred: $(dmsetup info p)"
dmsetup message p 0 @cancel_deferred_remove
exec 5<&-
sleep 0.3
dmsetup info p >/dev/null || die "removed although that was cancelled"
exec 5</dev/dm-0
dmsetup remove --deferred p
exec 5<&-
wait_for 5 sh -c '! dmsetup info p'
ok "messages of the core"

# "a reserved-region magic should be known to blkid or wiped regions look empty". libblkid does not know ours: so a region must not look like
# what was there before (nothing would claim it then), and `presnap format` itself knows it.
mke2fs -q -t ext4 -F "$R2" >/dev/null
eq "$(wipefs -n --noheadings --output TYPE "$R2" | tr -d ' ')" ext4 "what libblkid sees before"
dd if=/dev/urandom of="$R2" bs=128k seek=$(($(sectors "$R2") / 256 - 1)) count=1 oflag=direct status=none
presnap format --origin "$O" "$R2" --force >/dev/null 2>&1
eq "$(wipefs -n --noheadings "$R2")" "" "what libblkid sees in a region"
dd if="$R2" bs=128k skip=$(($(sectors "$R2") / 256 - 1)) count=1 iflag=direct status=none | cmp -n 131072 - /dev/zero
expect_fail -m "holds a region of presnap" presnap format --origin "$O" "$R2"
mkfs.xfs -q -f "$R2" 2>/dev/null || mkfs.xfs -q -f -d size=60m "$R2" 2>/dev/null || mke2fs -q -F "$R2"
expect_fail -m "holds a" presnap format --origin "$O" "$R2"
presnap format --origin "$O" "$R2" --force >/dev/null 2>&1
eq "$(wipefs -n --noheadings "$R2")" "" "what libblkid sees in a region that was a file system"
rmmod dm_presnap
ok "signatures"
