// SPDX-License-Identifier: GPL-2.0-only

//! Runs seeds until enough power losses have been looked at.
//!
//! `PRESNAP_CRASH_POINTS` says how many, `PRESNAP_SEED` runs a single seed and shows what it did.

use std::collections::BTreeMap;
use std::env;
use std::io::Write;
use std::time::Instant;

/// Power losses, unless the environment says otherwise.
const POINTS: u64 = 20_000;

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
    let begun = Instant::now();
    let (mut points, mut failed) = (0, 0);
    let mut seed = number("PRESNAP_FIRST_SEED").unwrap_or(0);
    let mut reached = BTreeMap::<&str, u64>::new();
    while points < wanted {
        let outcome = presnap_simulation::run(seed, false);
        points += outcome.points;
        for (what, times) in outcome.reached {
            *reached.entry(what).or_default() += times;
        }
        if let Some(why) = outcome.failure {
            failed += 1;
            say(&format!("after {points} crash points, seed {seed}: {why}"));
            say(&format!("PRESNAP_SEED={seed} cargo test -p presnap-simulation"));
            if number("PRESNAP_FAILURES").is_none_or(|most| failed >= most) {
                panic!("{failed} seeds failed");
            }
        }
        seed += 1;
    }
    let took = begun.elapsed();
    assert_eq!(failed, 0);
    for (what, times) in &reached {
        say(&format!("{times:>12} {what}"));
        // A history that never comes there tests nothing of it.
        assert!(*times > 0 || wanted < POINTS, "no {what}");
    }
    say(&format!("{points} crash points, {seed} seeds, {:.1} s", took.as_secs_f64()));
}
