// SPDX-License-Identifier: GPL-2.0-only

//! Runs seeds until enough power losses have been looked at.
//!
//! `PRESNAP_CRASH_POINTS` says how many, `PRESNAP_FIRST_SEED` where to begin, `PRESNAP_FAILURES` after how many failures to end;
//! `PRESNAP_SEED` runs a single seed and shows what it did.

use std::collections::BTreeMap;
use std::env;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Instant;

/// Power losses, unless the environment says otherwise.
const POINTS: u64 = 20_000;
/// After so many a long run says how far it is.
const PROGRESS: u64 = 50_000;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Not captured by the test harness.
fn say(words: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{words}");
}

#[test]
fn every_crash_point() {
    if let Some(seed) = number("PRESNAP_SEED") {
        let outcome = presnap_simulation::run(seed, true);
        for line in &outcome.log {
            say(line);
        }
        say(&format!("seed {seed}: {} crash points, {:?}", outcome.points, outcome.failure));
        assert!(outcome.failure.is_none());
        return;
    }
    let wanted = number("PRESNAP_CRASH_POINTS").unwrap_or(POINTS);
    let most = number("PRESNAP_FAILURES").unwrap_or(1);
    let begun = Instant::now();
    let first = number("PRESNAP_FIRST_SEED").unwrap_or(0);
    let (next, points, failed) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0));
    let reached = Mutex::new(BTreeMap::<&str, u64>::new());
    let shown = AtomicU64::new(0);
    // Everything a world has is of its thread.
    let work = || {
        while points.load(Relaxed) < wanted && failed.load(Relaxed) < most {
            let seed = next.fetch_add(1, Relaxed);
            let outcome = presnap_simulation::run(seed, false);
            let all = points.fetch_add(outcome.points, Relaxed) + outcome.points;
            if let Ok(mut reached) = reached.lock() {
                for (what, times) in outcome.reached {
                    *reached.entry(what).or_default() += times;
                }
            }
            if let Some(why) = outcome.failure {
                failed.fetch_add(1, Relaxed);
                say(&format!("after {all} crash points, seed {seed}: {why}"));
                say(&format!("PRESNAP_SEED={seed} cargo test -p presnap-simulation"));
            }
            // Long runs show that they go on.
            if all / PROGRESS > shown.fetch_max(all / PROGRESS, Relaxed) {
                say(&format!(
                    "{all} of {wanted} crash points, {:.0} s",
                    begun.elapsed().as_secs_f64()
                ));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner();
    assert_eq!(failed, 0, "seeds failed");
    for (what, times) in reached.lock().expect("no thread has panicked").iter() {
        say(&format!("{times:>12} {what}"));
        // A history that never comes there tests nothing of it.
        assert!(*times > 0 || wanted < POINTS, "no {what}");
    }
    let (points, seeds) = (points.into_inner(), next.into_inner() - first);
    say(&format!("{points} crash points, {seeds} seeds, {:.1} s", begun.elapsed().as_secs_f64()));
}
