// SPDX-License-Identifier: GPL-2.0-only

//! What the command says to device-mapper and sysfs, and makes of their answers: both are played by files here; the
//! real ones are met in the VM tests.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{command, ok, path, refused, stdout, World};
use presnap_engine::features::FEATURES;
use presnap_engine::model::blob::{encode, LayerSpec, Normaliser, Requant, Spec};
use presnap_engine::model::{Family, Metadata, BLOB_BYTES_MAX};

/// A device `data` (dm-7) that answers messages from files: `answers/WORDS` (words joined by `_`), a line a time.
struct Fake {
    world: World,
    sysfs: PathBuf,
}

const DMSETUP: &str = r#"#!/bin/sh
D=$(dirname "$0")
echo "$*" >> "$D/log"
case $1 in
table) cat "$D/answers/table" ;;
status) cat "$D/answers/status" ;;
message)
	[ "$2 $3" = "data 0" ] || { echo "device $2 not found" >&2; exit 1; }
	shift 3
	f="$D/answers/$(echo "$*" | tr ' ' '_')"
	[ -e "$f" ] || { echo "message ioctl on data failed: Invalid argument" >&2; echo "Command failed." >&2; exit 1; }
	head -n 1 "$f"
	# The last answer stays.
	[ "$(wc -l < "$f")" -le 1 ] || { tail -n +2 "$f" > "$f.rest"; mv "$f.rest" "$f"; }
	;;
esac
"#;

impl Fake {
    fn new() -> Self {
        let world = World::new(512, 1);
        let sysfs = world.path("sys");
        let fake = Self { sysfs, world };
        for dir in [
            "sys/block/dm-7/dm",
            "sys/block/dm-7/presnap/stats",
            "sys/block/dm-7/presnap/model",
            "answers",
        ] {
            std::fs::create_dir_all(fake.world.path(dir)).expect("made");
        }
        fake.file("sys/block/dm-7/dm/name", "data\n");
        fake.file("sys/block/dm-7/dev", "253:7\n");
        fake.file("sys/block/dm-7/size", "4096\n");
        fake.file("dmsetup", DMSETUP);
        let script = fake.world.path("dmsetup");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("set");
        let (origin, region) = (&fake.world.origin, &fake.world.region);
        fake.file(
            "answers/table",
            &format!("0 4096 presnap {} {} 2 scope image\n", path(origin), path(region)),
        );
        fake
    }

    fn file(&self, name: &str, content: &str) {
        std::fs::write(self.world.path(name), content).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.world.path(name)).expect("read")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = command(args);
        c.env("PRESNAP_SYSFS", &self.sysfs);
        c.env("PRESNAP_DMSETUP", self.world.path("dmsetup"));
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("runs")
    }
}

#[test]
fn a_snapshot_is_waited_for() {
    let f = Fake::new();
    f.file("answers/snapshot_scope_image_within_1500_freeze_budget_unlimited", "3\n");
    f.file(
        "answers/state_3",
        "3 pending\n3 freezing\n3 draining delta_blocks=9\n3 sealed delta_blocks=9 freeze_us=120\n",
    );
    let args = [
        "snapshot",
        "data",
        "--scope",
        "image",
        "--within",
        "1.5s",
        "--freeze-budget",
        "unlimited",
    ];
    assert_eq!(ok(f.run(&args)), "3\n");
    assert_eq!(f.read("log").matches("state 3").count(), 4);
    f.file("answers/snapshot", "4\n");
    assert_eq!(ok(f.run(&["snapshot", "/dev/mapper/data", "--no-wait"])), "4\n");
    f.file("answers/state_4", "4 sealed delta_blocks=9 freeze_us=120\n");
    let json: serde_json::Value =
        serde_json::from_str(&ok(f.run(&["snapshot", "/dev/dm-7", "--json"]))).expect("JSON");
    assert_eq!(
        (&json["id"], &json["freeze_us"], &json["state"]),
        (&4.into(), &120.into(), &"sealed".into())
    );
    f.file("answers/state_4", "4 dropped:overflow\n");
    refused(f.run(&["snapshot", "data"]), "snapshot 4 was dropped: the region was full");
    f.file("answers/state_4", "4 draining\n");
    refused(f.run(&["snapshot", "data", "--timeout", "50ms"]), "still draining");
    std::fs::remove_file(f.world.path("answers/snapshot")).expect("removed");
    refused(f.run(&["snapshot", "data"]), "refused");
    refused(f.run(&["snapshot", "other"]), "other: no device-mapper device");
    refused(f.run(&["snapshot", path(&f.world.region)]), "not a running presnap device");
}

#[test]
fn list_status_and_rm() {
    let f = Fake::new();
    f.file("answers/list", "-\n");
    assert_eq!(ok(f.run(&["list", "data"])), "no snapshots\n");
    f.file("answers/list", "1 sealed image 0 1 99 12 1700000000000000000\n");
    assert!(ok(f.run(&["list", "data"])).contains("2023-11-14T22:13:20.000Z"));
    f.file("answers/list", "nonsense\n");
    refused(f.run(&["list", "data"]), "cannot understand");
    f.file("answers/status", "0 4096 presnap 5/1000 77 12 3 2 3:draining rw full-needed\n");
    let words = ok(f.run(&["status", "data"]));
    assert!(words.contains("3:draining") && words.contains("next send must be full"), "{words}");
    f.file("answers/delete_1", "\n");
    f.file("answers/state_1", "1 sealed\n1 sealed\n1 unknown\n");
    f.file("answers/delete_2", "\n");
    f.file("answers/state_2", "2 unknown\n");
    ok(f.run(&["rm", "data", "2", "1"]));
    let log = f.read("log");
    assert!(log.find("delete 1") < log.find("delete 2"), "the oldest first: {log}");
    refused(f.run(&["rm", "data", "9"]), "cannot delete snapshot 9");
    f.file("answers/table", "0 4096 linear 8:0 0\n");
    refused(f.run(&["status", "data"]), "of type linear");
}

#[test]
fn settings() {
    let f = Fake::new();
    f.file("sys/block/dm-7/presnap/predictor", "ewma\n");
    f.file("sys/block/dm-7/presnap/tick_ms", "200\n");
    f.file("sys/block/dm-7/presnap/stats/hits", "12\n");
    assert_eq!(ok(f.run(&["get", "data", "predictor"])), "ewma\n");
    assert!(ok(f.run(&["get", "data", "--json"])).contains("\"tick_ms\": 200"));
    assert!(ok(f.run(&["stats", "data", "--json"])).contains("\"hits\": 12"));
    ok(f.run(&["set", "data", "tick_ms", "500"]));
    assert!(f.read("sys/block/dm-7/presnap/tick_ms").starts_with("500"));
    refused(
        f.run(&["set", "data", "tack_ms", "1"]),
        "no setting `tack_ms` (there are: predictor, tick_ms)",
    );
    refused(f.run(&["set", "data", "../size", "1"]), "no setting");
}

#[test]
fn a_delta_of_a_running_device_is_held_and_released() {
    let mut f = Fake::new();
    for (base, seed) in [(0, 5), (1, 6), (2, 7)] {
        let changes = f.world.random_changes(seed);
        f.world.snapshot(base, &changes);
    }
    for id in 1..=3 {
        f.file(&format!("answers/hold_{id}"), "\n");
        f.file(&format!("answers/release_{id}"), "\n");
    }
    let out = f.world.path("stream");
    ok(f.run(&["send", "data", "3", "--base", "1", "-o", path(&out)]));
    assert_eq!(std::fs::read(&out).expect("read"), f.world.delta(3, 1));
    let log = f.read("log");
    for words in ["hold 2", "hold 3", "release 2", "release 3"] {
        assert_eq!(log.matches(&format!("0 {words}\n")).count(), 1, "{words}: {log}");
    }
    // The reader goes away, or somebody wants it to end: released all the same.
    std::fs::write(f.world.path("log"), "").expect("written");
    let image = f.world.image_file(3);
    let mut child = f
        .command(&["send", "data", "3", "--image-device", path(&image)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let o = child.wait_with_output().expect("ends");
    refused(o, "Broken pipe");
    assert!(f.read("log").contains("release 3"), "{}", f.read("log"));
    // The view of a full send is removed even if it cannot be read.
    std::fs::write(f.world.path("log"), "").expect("written");
    refused(f.run(&["send", "data", "2", "-o", path(&out)]), "image /dev/mapper/presnap-send-2");
    assert!(f.read("log").contains("--readonly --table 0 4096 presnap-image 253:7 2"));
    assert!(!out.exists());
}

fn model() -> Vec<u8> {
    let normalisers = [Normaliser { offset: 0, multiplier: 256, shift: 8 }; FEATURES];
    let weights = [3i8; FEATURES];
    let layer = LayerSpec {
        weights: &weights,
        biases: &[7],
        requants: &[Requant { multiplier: 1 << 20, shift: 20 }],
    };
    let metadata = Metadata::named("test");
    let layers = [layer];
    let spec =
        Spec { family: Family::Linear, metadata, normalisers: &normalisers, layers: &layers };
    let mut out = vec![0; BLOB_BYTES_MAX];
    let n = encode(&spec, &mut out).expect("a model");
    out.truncate(n);
    out
}

#[test]
fn models() {
    let f = Fake::new();
    let (good, bad) = (f.world.path("good.psm"), f.world.path("bad.psm"));
    let blob = model();
    std::fs::write(&good, &blob).expect("written");
    assert!(ok(f.run(&["model", "info", path(&good)])).contains("linear (12-1)"));
    for name in ["blob", "commit", "rollback", "error", "state"] {
        f.file(&format!("sys/block/dm-7/presnap/model/{name}"), "");
    }
    f.file("sys/block/dm-7/presnap/model/state", "linear schema=1 crc=2 generation=3\n");
    ok(f.run(&["model", "push", "data", path(&good)]));
    let uploaded = std::fs::read(f.world.path("sys/block/dm-7/presnap/model/blob")).expect("read");
    assert_eq!(uploaded, blob);
    assert_eq!(f.read("sys/block/dm-7/presnap/model/commit"), "1");
    refused(f.run(&["model", "verify", "data", path(&good)]), "does not use this model");
    // Refused before the kernel is asked.
    for (what, bytes) in [
        ("cut", blob[..blob.len() - 1].to_vec()),
        ("empty", Vec::new()),
        ("flipped", blob.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 60)).collect()),
        ("large", vec![0; 70_000]),
        ("garbage", vec![0x55; 600]),
    ] {
        std::fs::write(&bad, bytes).expect("written");
        refused(f.run(&["model", "push", "data", path(&bad)]), "bad.psm");
        refused(f.run(&["model", "info", path(&bad)]), "bad.psm");
        let now = std::fs::read(f.world.path("sys/block/dm-7/presnap/model/blob")).expect("read");
        assert_eq!(now, blob, "{what}");
    }
    // Refused by the kernel, with its words.
    f.file("sys/block/dm-7/presnap/model/error", "an accumulator can overflow\n");
    std::fs::remove_file(f.world.path("sys/block/dm-7/presnap/model/commit")).expect("removed");
    refused(f.run(&["model", "push", "data", path(&good)]), "an accumulator can overflow");
}

#[test]
fn manual_pages() {
    let f = Fake::new();
    let dir = f.world.path("man");
    ok(f.run(&["man", path(&dir)]));
    for page in ["presnap.1", "presnap-snapshot.1", "presnap-trace-replay.1"] {
        assert!(dir.join(page).exists(), "{page}");
    }
    let o = f.run(&["--help"]);
    assert!(o.status.success() && !stdout(&o).contains(" man "), "hidden");
}
