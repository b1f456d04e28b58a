// SPDX-License-Identifier: GPL-2.0-only

//! The words of `dmsetup message`.

use crate::freeze::FreezeBudget;
use crate::table::{parse_number, parse_scope, Scope};

/// A message to the target `presnap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// `snapshot [scope delta|image] [within <ms>] [freeze_budget <us>|unlimited]`
    Snapshot {
        /// Its scope, `None` for the device's default.
        scope: Option<Scope>,
        /// How long T0 may be put off, in milliseconds.
        within_ms: u64,
        /// Its freeze budget, `None` for the device's.
        budget: Option<FreezeBudget>,
    },
    /// `state <id>`
    State(u32),
    /// `delete <id>`
    Delete(u32),
    /// `hold <id>`: keep it from being deleted.
    Hold(u32),
    /// `release <id>`
    Release(u32),
    /// `list`
    List,
    /// `abort`: drop the unfinished snapshot.
    Abort,
    /// `sync`: make the root durable.
    Sync,
    /// `grow`: use what the region device has more than before.
    Grow,
}

/// The longest grace of a manual snapshot: one day.
pub const WITHIN_MAX_MS: u64 = 86_400_000;

/// Parses a freeze budget in microseconds, or `unlimited`; at most a minute.
pub fn parse_budget(word: &[u8]) -> Option<FreezeBudget> {
    if word.eq_ignore_ascii_case(b"unlimited") {
        return Some(FreezeBudget::Unlimited);
    }
    let us = parse_number(word).filter(|&us| us <= 60_000_000)?;
    Some(FreezeBudget::Bounded(us.saturating_mul(1000)))
}

impl Message {
    /// Parses a message.
    ///
    /// # Errors
    ///
    /// What is wrong, in words.
    pub fn parse<'a>(mut words: impl Iterator<Item = &'a [u8]>) -> Result<Self, &'static str> {
        let verb = words.next().ok_or("empty message")?;
        let is = |word: &str| verb.eq_ignore_ascii_case(word.as_bytes());
        let message = if is("snapshot") {
            Self::parse_snapshot(&mut words)?
        } else if is("list") {
            Self::List
        } else if is("abort") {
            Self::Abort
        } else if is("sync") {
            Self::Sync
        } else if is("grow") {
            Self::Grow
        } else {
            let with_id: fn(u32) -> Self = if is("state") {
                Self::State
            } else if is("delete") {
                Self::Delete
            } else if is("hold") {
                Self::Hold
            } else if is("release") {
                Self::Release
            } else {
                return Err("unrecognised message received");
            };
            let id = words.next().ok_or("incorrect number of message arguments")?;
            let id = parse_number(id).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
            with_id(id.ok_or("a snapshot id is a number from 1 to 4294967295")?)
        };
        match words.next() {
            Some(_) => Err("incorrect number of message arguments"),
            None => Ok(message),
        }
    }

    fn parse_snapshot<'a>(
        words: &mut impl Iterator<Item = &'a [u8]>,
    ) -> Result<Self, &'static str> {
        let (mut scope, mut within_ms, mut budget) = (None, None, None);
        while let Some(key) = words.next() {
            let value = words.next().ok_or("incorrect number of message arguments")?;
            let is = |word: &str| key.eq_ignore_ascii_case(word.as_bytes());
            let twice = if is("scope") {
                let parsed = parse_scope(value).ok_or("scope must be delta or image")?;
                scope.replace(parsed).is_some()
            } else if is("within") {
                let parsed = parse_number(value)
                    .filter(|&ms| ms <= WITHIN_MAX_MS)
                    .ok_or("within must be a number of milliseconds, at most 86400000")?;
                within_ms.replace(parsed).is_some()
            } else if is("freeze_budget") {
                let parsed = parse_budget(value).ok_or(
                    "freeze_budget must be a number of microseconds, at most 60000000, or unlimited",
                )?;
                budget.replace(parsed).is_some()
            } else {
                return Err("unknown option; snapshot knows scope, within and freeze_budget");
            };
            if twice {
                return Err("an option was given twice");
            }
        }
        Ok(Self::Snapshot { scope, within_ms: within_ms.unwrap_or(0), budget })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Message, &'static str> {
        Message::parse(line.split_whitespace().map(str::as_bytes))
    }

    #[test]
    fn good_messages() {
        let plain = Message::Snapshot { scope: None, within_ms: 0, budget: None };
        assert_eq!(parse("snapshot"), Ok(plain));
        assert_eq!(
            parse("Snapshot WITHIN 5000 scope image freeze_budget unlimited"),
            Ok(Message::Snapshot {
                scope: Some(Scope::Image),
                within_ms: 5000,
                budget: Some(FreezeBudget::Unlimited)
            })
        );
        assert_eq!(parse("state 7"), Ok(Message::State(7)));
        assert_eq!(parse("DELETE 4294967295"), Ok(Message::Delete(u32::MAX)));
        assert_eq!(parse("list"), Ok(Message::List));
    }

    #[test]
    fn bad_messages() {
        for line in [
            "",
            "frobnicate",
            "state",
            "state 0",
            "state -1",
            "state 4294967296",
            "state 1 2",
            "list 1",
            "snapshot scope",
            "snapshot scope everything",
            "snapshot within soon",
            "snapshot within 86400001",
            "snapshot within 1 within 2",
            "snapshot freeze_budget 60000001",
            "snapshot colour red",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
