// SPDX-License-Identifier: GPL-2.0-only

//! The whole tool on a file: a file at rest passes, and a copy of it made while it is written to does not, which shows
//! that the tool can fail.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output};

fn device(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("presnap-torture-{name}-{}", std::process::id()));
    File::create(&path).and_then(|f| f.set_len(32 << 20)).expect("made");
    path
}

fn torture(device: &std::path::Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_presnap-torture"))
        .arg("--device")
        .arg(device)
        .args(["--threads", "4", "--seed", "7"])
        .args(args)
        .output()
        .expect("runs")
}

#[test]
fn a_file_at_rest_passes() {
    let path = device("rest");
    let o = torture(&path, &["--seconds", "1"]);
    std::fs::remove_file(&path).expect("removed");
    let words = String::from_utf8_lossy(&o.stdout);
    assert!(o.status.success(), "{words}{}", String::from_utf8_lossy(&o.stderr));
    assert!(words.contains("0 snapshots verified, 0 violations"), "{words}");
}

#[test]
fn a_copy_of_a_file_in_use_does_not_pass() {
    let path = device("use");
    let copy = path.with_extension("copy");
    // Halves copied at different times, as a snapshot without a freeze would have it.
    let take = "dd if={device} of={device}.copy bs=1M count=16 status=none; sleep 1; \
                dd if={device} of={device}.copy bs=1M skip=16 seek=16 conv=notrunc status=none; echo 1";
    let take = take.replace("{device}.copy", &copy.display().to_string());
    let verify = format!("echo {}", copy.display());
    let args =
        ["--seconds", "2", "--snapshots", "1", "--snapshot-cmd", &take, "--verify-cmd", &verify];
    let o = torture(&path, &args);
    for p in [&path, &copy] {
        let _ = std::fs::remove_file(p);
    }
    let words = String::from_utf8_lossy(&o.stdout);
    assert_eq!(o.status.code(), Some(1), "{words}{}", String::from_utf8_lossy(&o.stderr));
    assert!(
        words.contains("1 snapshots verified, ") && !words.contains(" 0 violations"),
        "{words}"
    );
}
