// SPDX-License-Identifier: GPL-2.0-only

//! The oracle: is what an image holds a consistent cut of what was written?
//!
//! A snapshot was taken between the stamps `begin` and `end`. Its image is right if there is one instant T0
//! between them such that every sector holds what the writes before T0 left there. Writes in flight at T0 may be
//! in it or not; so may either of two writes of one sector that overlapped in time. With `<` for "completed
//! before the other was submitted", this is equivalent to the first two rules a sector, for a common bound
//!
//! `L = max(begin, latest submission of any write seen in the image)`:
//!
//! 1. the write `w` seen in the sector was submitted before `end`;
//! 2. no write `k` of that sector has `w < k` and completed before `L`.
//!
//! 3. no write `k` of that sector has `w < k`, reached the device as one request, and is seen in another sector.
//!
//! Rule 2 with `begin` is "all that completed before the snapshot is in it"; with the latest write seen it is
//! "what is in the image implies all that was over before it began", of which the order of one thread's writes is
//! a case. Rule 3 says more than that: T0 lies between two requests, so one in flight at T0 is in the image or it is
//! not, but never half of it. Zeroes carry no stamp: they pass if some zeroing write (or the untouched state) passes.

use std::collections::HashSet;

use crate::history::{Kind, Write, PENDING};
use crate::sector::{Bad, Seen};

/// The stamps around the taking of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Before the command began.
    pub(crate) begin: u64,
    /// After it returned.
    pub(crate) end: u64,
}

/// The outcome of one check.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The first violations.
    pub(crate) violations: Vec<Violation>,
    /// How many there are.
    pub(crate) count: u64,
    /// Sectors that carry a write's content (the others are zero).
    pub(crate) stamped: u64,
    /// What bounds T0 from below: the snapshot's begin, or the latest write seen and where.
    pub(crate) bound: String,
}

/// A sector that breaks the rules.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// The sector.
    pub(crate) sector: u64,
    /// What is there, and why it must not be.
    pub(crate) found: String,
    /// What could have been there.
    pub(crate) expected: String,
}

/// Writes of each sector, in one array (compressed rows).
pub(crate) struct BySector<'a> {
    writes: &'a [Write],
    start: Vec<u32>,
    list: Vec<u32>,
    /// Of those that reached the device as one request, the ones seen in the image.
    whole: HashSet<u64>,
}

impl<'a> BySector<'a> {
    /// Sorts `writes` by the `sectors` sectors they touch.
    pub(crate) fn new(writes: &'a [Write], sectors: usize) -> Self {
        let mut start = vec![0u32; sectors + 1];
        for w in writes {
            for s in range(w, sectors) {
                start[s + 1] += 1;
            }
        }
        for i in 0..sectors {
            start[i + 1] += start[i];
        }
        let mut next = start.clone();
        let mut list = vec![0u32; *start.last().unwrap_or(&0) as usize];
        for (i, w) in writes.iter().enumerate() {
            for s in range(w, sectors) {
                list[next[s] as usize] = i as u32;
                next[s] += 1;
            }
        }
        Self { writes, start, list, whole: HashSet::new() }
    }

    /// Notes which writes that are in the image as a whole or not at all are in it.
    fn note_whole(&mut self, seen: &[Seen]) {
        let mut whole = HashSet::new();
        for (s, what) in seen.iter().enumerate() {
            let Seen::Stamp(n) = *what else { continue };
            if self.of(s).any(|w| w.submit == n && w.whole) {
                whole.insert(n);
            }
        }
        self.whole = whole;
    }

    /// The writes of one sector.
    fn of(&self, sector: usize) -> impl Iterator<Item = &'a Write> + '_ {
        let range = self.start[sector] as usize..self.start[sector + 1] as usize;
        self.list[range].iter().map(|&i| &self.writes[i as usize])
    }

    /// The stamp such that a write of the sector completed before it is overwritten for sure at bound `l`:
    /// the latest submission among the writes that completed before `l`, or are in the image as a whole.
    fn killer(&self, sector: usize, l: u64) -> u64 {
        let in_image = |k: &Write| k.complete < l || k.whole && self.whole.contains(&k.submit);
        self.of(sector)
            .filter(|k| k.kind != Kind::MaybeZero && in_image(k))
            .map(|k| k.submit)
            .max()
            .unwrap_or(NOTHING)
    }

    /// Words for why the killer of a sector took place before T0.
    fn why(&self, sector: usize, killer: u64, l: u64) -> String {
        match self.of(sector).find(|k| k.submit == killer && k.complete >= l) {
            Some(k) => format!("{k} is in the image, and not all of it"),
            None => format!("T0 is not before {l}"),
        }
    }
}

fn range(w: &Write, sectors: usize) -> std::ops::Range<usize> {
    let start = (w.sector as usize).min(sectors);
    start..(start + w.sectors as usize).min(sectors)
}

/// The killer of a sector that nothing was written to for sure: the initial zeroes may still be there.
const NOTHING: u64 = 0;

/// Checks an image: `seen` is what each sector holds. Keeps at most `limit` violations, one of
/// several neighbours with the same fault.
///
/// The history may have been [`prune`]d at any stamp up to `cut.begin`: what is missing in it was overwritten before.
pub(crate) fn check(history: &[Write], seen: &[Seen], cut: Cut, limit: usize) -> Report {
    let mut by = BySector::new(history, seen.len());
    by.note_whole(seen);
    let (l, bound) = bound(&by, seen, cut);
    let mut report = Report { bound, ..Report::default() };
    for (s, what) in seen.iter().enumerate() {
        report.stamped += u64::from(matches!(what, Seen::Stamp(_)));
        let Err(found) = judge(&by, s, *what, cut, l) else { continue };
        report.count += 1;
        // Neighbours with the same fault are one finding.
        let same = report.violations.last().is_some_and(|v| v.found == found);
        if report.violations.len() < limit && !same {
            let expected = expected(&by, s, cut, l);
            report.violations.push(Violation { sector: s as u64, found, expected });
        }
    }
    report
}

/// Rounds of raising the bound by zeroes; each is sound by itself, more only makes the check sharper.
const BOUND_ROUNDS: usize = 4;

/// The bound `L` and words for where it comes from.
///
/// Zeroes can only be placed by elimination: the bound so far leaves some zeroings that can stand in a sector, and
/// T0 is not before the earliest of them.
fn bound(by: &BySector<'_>, seen: &[Seen], cut: Cut) -> (u64, String) {
    let mut l = cut.begin;
    let mut words = format!("the snapshot's begin, {l}");
    for (s, what) in seen.iter().enumerate() {
        let Seen::Stamp(n) = *what else { continue };
        if n > l && n < cut.end {
            if let Some(w) = by.of(s).find(|w| w.submit == n) {
                l = n;
                words = format!("the latest write seen, {w}, in sector {s}");
            }
        }
    }
    for _ in 0..BOUND_ROUNDS {
        let mut higher = l;
        for (s, what) in seen.iter().enumerate() {
            let killer = if *what == Seen::Zero { by.killer(s, l) } else { 0 };
            if killer == 0 {
                continue;
            }
            let zeroings = by.of(s).filter(|w| w.kind != Kind::Data && w.complete >= killer);
            let first = zeroings.map(|w| w.submit).filter(|&n| n < cut.end).min().unwrap_or(0);
            if first > higher {
                higher = first;
                words = format!("the latest zeroing seen, #{first}, in sector {s}");
            }
        }
        if higher == l {
            break;
        }
        l = higher;
    }
    (l, words)
}

/// Applies the two rules to one sector.
fn judge(by: &BySector<'_>, s: usize, what: Seen, cut: Cut, l: u64) -> Result<(), String> {
    let killer = by.killer(s, l);
    match what {
        Seen::Bad(bad) => Err(bad.to_string()),
        Seen::Stamp(n) => match by.of(s).find(|w| w.submit == n && w.kind == Kind::Data) {
            None if n < l => Err(format!("write #{n}, which was overwritten long before")),
            None => Err(format!("write #{n}, which was never made here")),
            Some(w) if w.submit >= cut.end => {
                Err(format!("{w}, submitted after the snapshot returned at {}", cut.end))
            }
            Some(w) if w.complete < killer => {
                Err(format!("{w}, overwritten before T0 ({})", by.why(s, killer, l)))
            }
            Some(_) => Ok(()),
        },
        Seen::Zero => {
            let by_write = by
                .of(s)
                .any(|w| w.kind != Kind::Data && w.submit < cut.end && w.complete >= killer);
            if by_write || killer == NOTHING {
                Ok(())
            } else {
                Err(format!("zeroes, overwritten before T0 ({})", by.why(s, killer, l)))
            }
        }
    }
}

/// Words for what would have been right.
fn expected(by: &BySector<'_>, s: usize, cut: Cut, l: u64) -> String {
    let killer = by.killer(s, l);
    let mut out: Vec<String> = by
        .of(s)
        .filter(|w| w.complete >= killer && w.submit < cut.end)
        .map(ToString::to_string)
        .collect();
    if killer == 0 {
        out.push("zeroes".into());
    }
    out.truncate(6);
    out.join(" or ")
}

/// Drops what can appear in no image of a snapshot that begins at `before` or later: returns the entries
/// completed before `before`, cut down to the sectors where they may still be seen or needed.
pub(crate) fn prune(history: &[Write], sectors: usize, before: u64) -> Vec<Write> {
    let by = BySector::new(history, sectors);
    let killers: Vec<u64> = (0..sectors).map(|s| by.killer(s, before)).collect();
    let mut out = Vec::new();
    for w in history.iter().filter(|w| w.complete < before) {
        debug_assert_ne!(w.complete, PENDING);
        let mut run: Option<Write> = None;
        for s in range(w, sectors) {
            // Kept as content, or as the killer itself (its stamp bounds the older ones).
            if w.complete >= killers[s] {
                match &mut run {
                    Some(r) => r.sectors += 1,
                    None => run = Some(Write { sector: s as u32, sectors: 1, ..*w }),
                }
            } else if let Some(r) = run.take() {
                out.push(r);
            }
        }
        out.extend(run);
    }
    out
}

/// Marks every sector of a range as unreadable.
pub(crate) fn unreadable(seen: &mut [Seen]) {
    seen.fill(Seen::Bad(Bad::Unreadable));
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
