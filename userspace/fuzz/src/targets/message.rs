// SPDX-License-Identifier: GPL-2.0-only

//! Messages of `dmsetup message`.

use presnap_engine::freeze::FreezeBudget;
use presnap_engine::message::{parse_budget, Message, WITHIN_MAX_MS};

use super::table::{number, words};
use crate::bytes::says;

/// The message as somebody would write it, if it can be.
fn line(message: &Message) -> String {
    match message {
        Message::Snapshot { scope, within_ms, budget } => {
            let mut out = format!("snapshot within {within_ms}");
            if let Some(scope) = scope {
                out += &format!(" scope {}", scope.as_str());
            }
            match budget {
                Some(FreezeBudget::Unlimited) => out += " freeze_budget unlimited",
                Some(FreezeBudget::Bounded(ns)) => {
                    assert!(*ns <= 60_000_000_000 && ns % 1000 == 0);
                    out += &format!(" freeze_budget {}", ns / 1000);
                }
                None => {}
            }
            out
        }
        Message::State(id) => format!("state {id}"),
        Message::Delete(id) => format!("delete {id}"),
        Message::Hold(id) => format!("hold {id}"),
        Message::Release(id) => format!("release {id}"),
        Message::List => "list".into(),
        Message::Abort => "abort".into(),
        Message::Sync => "sync".into(),
        Message::Grow => "grow".into(),
    }
}

pub(crate) fn run(data: &[u8]) {
    let parsed = Message::parse(words(data));
    match parsed {
        Ok(message) => {
            let shown = line(&message);
            assert_eq!(Message::parse(words(shown.as_bytes())), Ok(message), "{shown}");
            match message {
                Message::Snapshot { within_ms, .. } => {
                    assert!(within_ms <= WITHIN_MAX_MS);
                    let key = words(data).position(|w| w.eq_ignore_ascii_case(b"within"));
                    let given = key.and_then(|i| number(words(data).nth(i + 1)?));
                    assert_eq!(given.unwrap_or(0), within_ms);
                }
                Message::State(id)
                | Message::Delete(id)
                | Message::Hold(id)
                | Message::Release(id) => {
                    assert!(id > 0);
                    assert_eq!(words(data).nth(1).and_then(number), Some(id.into()));
                }
                Message::List | Message::Abort | Message::Sync | Message::Grow => {}
            }
        }
        Err(why) => says(why),
    }
    // The case of the letters does not matter.
    assert_eq!(Message::parse(words(&data.to_ascii_uppercase())), parsed);
    for word in words(data) {
        let bounded = number(word).filter(|us| *us <= 60_000_000);
        if let Some(FreezeBudget::Bounded(ns)) = parse_budget(word) {
            assert_eq!(bounded, Some(ns / 1000));
        } else {
            assert_eq!(bounded, None);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "snapshot",
        "Snapshot WITHIN 5000 scope image freeze_budget unlimited",
        "snapshot within 86400000 freeze_budget 60000000 scope delta",
        "snapshot within 86400001",
        "snapshot scope delta scope image",
        "state 4294967295",
        "delete 1",
        "hold 4294967296",
        "state 18446744073709551617",
        "snapshot within 18446744073709551617",
        "release 0",
        "list",
        "abort 1",
        "sync",
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}
