// SPDX-License-Identifier: GPL-2.0-only

//! The loads on a file, where the machine has io_uring.

use std::fs::File;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_load_reports() {
    let path = std::env::temp_dir().join(format!("presnap-load-{}", std::process::id()));
    File::create(&path).and_then(|f| f.set_len(16 << 20)).expect("made");
    for load in ["fill", "zipf", "seq", "mixed"] {
        let o = Command::new(env!("CARGO_BIN_EXE_presnap-load"))
            .arg(load)
            .arg(&path)
            .args(["--seconds", "1.6", "--warmup", "0.1", "--at", "0.8", "--command", "echo 7"])
            .output()
            .expect("runs");
        let words = String::from_utf8_lossy(&o.stderr);
        if words.contains("io_uring") {
            eprintln!("no io_uring here, skipped: {words}");
            break;
        }
        assert!(o.status.success(), "{load}: {words}");
        let v: Value = serde_json::from_slice(&o.stdout).expect("JSON");
        assert_eq!(v["command"]["stdout"], "7");
        assert!(v["windows"].as_array().is_some_and(|w| !w.is_empty()));
        if load != "fill" {
            for part in ["before", "after"] {
                assert!(v[part]["iops"].as_f64().is_some_and(|n| n > 0.0), "{load} {part}: {v}");
                let (p50, p99) = (v[part]["p50_us"].as_f64(), v[part]["p99_us"].as_f64());
                assert!(p50 > Some(0.0) && p50 <= p99);
            }
        }
        if load == "mixed" {
            assert!(v["before"]["reads"]["ios"].as_u64() > Some(0));
        }
    }
    std::fs::remove_file(&path).expect("removed");
}
