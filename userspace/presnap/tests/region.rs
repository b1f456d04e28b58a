// SPDX-License-Identifier: GPL-2.0-only

//! Regions as files: format, check, list, show; what is damaged is refused or healed by the other copy.

mod common;

use common::{ok, path, presnap, refused, stderr, Change, World, BLOCK};
use presnap_engine::region::Copy2;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn format_and_check() {
    let w = World::new(512, 1);
    let region = path(&w.region);
    let report = json(&ok(presnap(&["check", region, "--data", "--json"])));
    assert_eq!(report["errors"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        (report["origin_sectors"].as_u64(), report["clean"].as_bool()),
        (Some(4096), Some(true))
    );
    assert_eq!(ok(presnap(&["list", region])), "no snapshots\n");
    let origin = path(&w.origin);
    refused(presnap(&["format", "--origin", origin, region]), "holds a region of presnap");
    let again = json(&ok(presnap(&["format", "--origin", origin, region, "--force", "--json"])));
    assert_ne!(again["region_uuid"], report["region_uuid"]);
    assert_eq!(again["origin_id"], report["origin_id"]);
}

#[test]
fn format_refuses() {
    let w = World::new(64, 1);
    let (origin, region) = (path(&w.origin), path(&w.region));
    refused(presnap(&["format", "--origin", region, region, "--force"]), "same device");
    refused(presnap(&["format", "--origin", "/nonexistent", region]), "--origin /nonexistent");
    refused(presnap(&["format", "--origin", origin, "/nonexistent"]), "/nonexistent");
    refused(presnap(&["format", "--origin", origin, "/dev/null"]), "/dev/null");
    let small = w.path("small");
    std::fs::write(&small, vec![0; 1 << 20]).expect("written");
    refused(presnap(&["format", "--origin", origin, path(&small)]), "too small");
    let used = w.path("used");
    for (at, bytes, words) in [
        (1080, &b"\x53\xef"[..], "ext2/3/4"),
        (0, b"XFSB", "XFS"),
        (536, b"LVM2 001", "LVM"),
        (510, b"\x55\xaa", "partition"),
        (70000, b"x", "data (at byte 70000)"),
        ((8 << 20) - 1, b"x", "data (at byte 8388607)"),
    ] {
        let mut content = vec![0; 8 << 20];
        content[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&used, &content).expect("written");
        refused(presnap(&["format", "--origin", origin, path(&used)]), words);
        assert_eq!(std::fs::read(&used).expect("read"), content, "changed although refused");
    }
    let empty = w.path("empty");
    std::fs::write(&empty, b"").expect("written");
    refused(
        presnap(&["format", "--origin", path(&empty), path(&used), "--force"]),
        "not one block",
    );
}

#[test]
fn usage_errors_have_status_2() {
    for args in
        [&["nonsense"][..], &["format"], &["show", "x", "0"], &["snapshot", "x", "--within", "5y"]]
    {
        assert_eq!(presnap(args).status.code(), Some(2), "{args:?}");
    }
    refused(presnap(&["snapshot", "no-such-device"]), "no-such-device");
}

#[test]
fn list_and_show() {
    let mut w = World::new(512, 2);
    let first = w.random_changes(5);
    w.snapshot(0, &first);
    let changes = [
        Change::Data(7, vec![1; 3 * BLOCK]),
        Change::Zero(100, 20, false),
        Change::Zero(200, 5, true),
    ];
    w.snapshot(1, &changes);
    let region = path(&w.region);
    let list = json(&ok(presnap(&["list", region, "--json"])));
    assert_eq!(list[1]["base"], 1);
    assert_eq!(list[1]["delta_blocks"], 28);
    let show = json(&ok(presnap(&["show", region, "2", "--json"])));
    assert_eq!((&show["op_first"], &show["op_last"]), (&200.into(), &299.into()));
    assert_eq!(show["statistics"]["freeze_ns"], 1_234_567);
    let chunks = show["chunks"].as_array().expect("chunks");
    assert_eq!(chunks.len(), 3);
    assert_eq!((&chunks[0]["start"], &chunks[0]["length"]), (&7.into(), &3.into()));
    assert_eq!((&chunks[1]["kind"], &chunks[2]["kind"]), (&"zero".into(), &"discarded".into()));
    assert!(ok(presnap(&["show", region, "2", "--chunks"])).contains("CHECKSUM"));
    refused(presnap(&["show", region, "9"]), "there are: 1, 2");
    ok(presnap(&["check", region, "--data"]));
}

#[test]
fn many_chunks_take_several_pages() {
    let mut w = World::new(2048, 3);
    let changes: Vec<Change> =
        (0..300).map(|i| Change::Data(i * 5, vec![i as u8 | 1; BLOCK])).collect();
    w.snapshot(0, &changes);
    let show = json(&ok(presnap(&["show", path(&w.region), "1", "--json"])));
    assert_eq!(show["chunks"].as_array().map(Vec::len), Some(300));
    ok(presnap(&["check", path(&w.region), "--data"]));
}

#[test]
fn the_other_copy_serves() {
    let mut w = World::new(512, 4);
    let changes = w.random_changes(6);
    w.snapshot(0, &changes);
    let layout = w.layout();
    let newest = w.newest();
    let region = path(&w.region);
    w.damage(layout.superblock_block(Copy2::A), 40);
    let out = ok(presnap(&["check", region]));
    assert!(out.contains("superblock") && out.contains("sound"), "{out}");
    w.damage(layout.superblock_block(Copy2::B), 41);
    for args in [&["list", region][..], &["check", region], &["send", region, "1", "--base", "0"]] {
        let o = presnap(args);
        assert_ne!(o.status.code(), Some(0), "{args:?}");
    }
    refused(presnap(&["list", region]), "superblock has a wrong checksum");
    w.damage(layout.superblock_block(Copy2::A), 40);
    // Without the newest root the older one counts: it has no snapshot yet.
    w.damage(layout.root_block(newest), 5000);
    let o = presnap(&["list", region]);
    assert_eq!(ok(o), "no snapshots\n");
    w.damage(layout.root_block(newest.other()), 5000);
    refused(presnap(&["list", region]), "root has a wrong checksum");
}

#[test]
fn check_finds_damage() {
    let mut w = World::new(512, 5);
    w.snapshot(0, &[Change::Data(7, vec![1; 30 * BLOCK])]);
    let layout = w.layout();
    let region = path(&w.region);
    let slot = w.slot_of(1, 20);
    w.damage(layout.slot_block(slot), 100);
    ok(presnap(&["check", region]));
    let o = presnap(&["check", region, "--data"]);
    let words = common::stdout(&o);
    assert!(words.contains("blocks 7+30") && words.contains(&format!("slot {slot}")), "{words}");
    refused(o, "errors");
    w.damage(layout.slot_block(slot), 100);
    ok(presnap(&["check", region, "--data"]));
    // The manifest page follows the data.
    w.damage(layout.slot_block(slot + 17), 50);
    let o = presnap(&["check", region]);
    assert!(common::stdout(&o).contains("manifest page has a wrong checksum"));
    refused(presnap(&["show", region, "1"]), "manifest page has a wrong checksum");
    w.damage(layout.slot_block(slot + 17), 50);
    // Only one copy of the index was ever written.
    w.damage(layout.index_copy_block(0, w.newest()), 60);
    let o = presnap(&["check", region]);
    assert!(common::stdout(&o).contains("the index says it is free"), "{}", common::stdout(&o));
    refused(o, "errors");
}

#[test]
fn what_is_no_region_is_refused_with_words() {
    let w = World::new(64, 6);
    let file = w.path("file");
    std::fs::write(&file, vec![0; 8 << 20]).expect("written");
    refused(presnap(&["list", path(&file)]), "blank");
    std::fs::write(&file, b"short").expect("written");
    refused(presnap(&["list", path(&file)]), "no region");
    std::fs::write(&file, vec![7; 8 << 20]).expect("written");
    refused(presnap(&["list", path(&file)]), "no region of presnap");
    let bytes = std::fs::read(&w.region).expect("read");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");
    refused(presnap(&["list", path(&file)]), "its end is missing");
}

#[test]
fn open_checks_the_pair() {
    let w = World::new(512, 7);
    let (origin, region) = (path(&w.origin), path(&w.region));
    let table = ok(presnap(&["open", "x", origin, region, "--scope", "image", "--print"]));
    assert!(table.contains("0 4096 presnap") && table.contains("scope image"), "{table}");
    let other = w.path("other");
    std::fs::copy(&w.origin, &other).expect("copied");
    refused(presnap(&["open", "x", path(&other), region, "--print"]), "belongs to another origin");
    std::fs::write(&other, vec![0; 4096]).expect("written");
    refused(presnap(&["open", "x", path(&other), region, "--print"]), "8 sectors");
    let o = presnap(&["open", "a/b", origin, region]);
    assert_eq!(o.status.code(), Some(2), "{}", stderr(&o));
}

fn repair(region: &str, more: &[&str], status: i32) -> String {
    let mut args = vec!["check", "--data", "--repair", region];
    args.extend(more);
    let o = presnap(&args);
    assert_eq!(o.status.code(), Some(status), "{}{}", common::stdout(&o), stderr(&o));
    common::stdout(&o) + &stderr(&o)
}

#[test]
fn repair_makes_whole_what_can_be() {
    let mut w = World::new(512, 8);
    for id in 1..=2 {
        let changes = w.random_changes(60 + u64::from(id));
        w.snapshot(id - 1, &changes);
    }
    let (layout, newest) = (w.layout(), w.newest());
    let region = path(&w.region);
    let sound = std::fs::read(&w.region).expect("read");
    assert!(repair(region, &[], 0).contains("sound"));
    assert_eq!(std::fs::read(&w.region).expect("read"), sound, "written without a fault");
    let (full, delta) = (w.full(2), w.delta(2, 1));
    w.damage(layout.superblock_block(Copy2::A), 40);
    w.damage(layout.root_block(newest.other()), 5000);
    w.damage(layout.index_copy_block(0, newest.other()), 60);
    let before = std::fs::read(&w.region).expect("read");
    let words = ok(presnap(&["check", "--data", region]));
    assert_eq!(words.matches("--repair:").count(), 3, "{words}");
    assert_eq!(std::fs::read(&w.region).expect("read"), before, "written by a check");
    let words = repair(region, &[], 1);
    assert_eq!(words.matches("repaired:").count(), 3, "{words}");
    assert!(!ok(presnap(&["check", "--data", region])).contains("warning"));
    assert!(w.full(2) == full && w.delta(2, 1) == delta, "another content");
    // In use, even if only by us.
    let file = std::fs::File::open(&w.region).expect("open");
    assert!(presnap_blockio::try_lock(&file).expect("flock"));
    assert!(repair(region, &[], 8).contains("in use"));
}

#[test]
fn what_is_lost_goes_only_when_told() {
    let mut w = World::new(512, 9);
    w.snapshot(0, &[Change::Data(7, vec![1; 30 * BLOCK])]);
    w.snapshot(1, &[Change::Data(9, vec![2; 2 * BLOCK])]);
    w.snapshot(2, &[Change::Data(11, vec![3; 2 * BLOCK])]);
    let region = path(&w.region);
    let delta = w.delta(3, 2);
    w.damage(w.layout().slot_block(w.slot_of(2, 9)), 100);
    let before = std::fs::read(&w.region).expect("read");
    let words = repair(region, &[], 4);
    assert!(words.contains("images of 1, 2 are wrong, too"), "{words}");
    assert!(words.contains("1 faults are left"), "{words}");
    assert_eq!(std::fs::read(&w.region).expect("read"), before);
    assert_eq!(presnap(&["check", region, "--drop-damaged"]).status.code(), Some(2));
    let words = repair(region, &["--drop-damaged", "--json"], 1);
    let report = json(&words);
    let how = report["faults"][0]["remedy"]["repair"].as_str().expect("repaired");
    assert_eq!(how, "snapshot 2 removed, the images of 1, 2 given up");
    let list = json(&ok(presnap(&["list", region, "--json"])));
    let ids: Vec<_> = list.as_array().expect("a list").iter().map(|s| s["id"].as_u64()).collect();
    assert_eq!(ids, [Some(1), Some(3)], "{list}");
    assert!(w.delta(3, 2) == delta);
    refused(presnap(&["send", region, "3", "--base", "1"]), "needs snapshot 2");
    // Without anything to go by, nothing is made up.
    for copy in [Copy2::A, Copy2::B] {
        w.damage(w.layout().root_block(copy), 300);
    }
    assert!(repair(region, &[], 4).contains("nothing to repair it from"));
    assert!(repair("/nonexistent", &[], 8).contains("/nonexistent"));
}
