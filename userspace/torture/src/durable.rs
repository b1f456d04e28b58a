// SPDX-License-Identifier: GPL-2.0-only

//! The oracle of durability: does a device that lost power hold what was durable?
//!
//! A sector may hold any write of it but those that were overwritten for sure, by one that was submitted after them
//! and is durable, and those that came later. What was not durable may be there or not, in any combination.

use std::collections::HashMap;

use crate::history::{Kind, Write};
use crate::record::{Record, Recorded};
use crate::sector::Seen;

/// What must be durable, at stamps that ascend.
pub(crate) struct Durability {
    /// By the stamp at which they were durable, descending: the next one last.
    ahead: Vec<Recorded>,
    by_name: HashMap<u64, Write>,
    /// Of each sector, when zeroings of it were submitted and completed.
    zeroings: Vec<Vec<(u64, u64)>>,
    /// Of each sector, the durable write that was submitted last.
    last: Vec<u64>,
}

fn sectors(w: &Write, all: usize) -> std::ops::Range<usize> {
    let from = (w.sector as usize).min(all);
    from..(from + w.sectors as usize).min(all)
}

impl Durability {
    /// Nothing is durable yet.
    pub(crate) fn new(record: &Record) -> Self {
        let all = record.sectors as usize;
        let mut ahead = record.writes.clone();
        ahead.sort_by_key(|(_, durable)| std::cmp::Reverse(*durable));
        let (mut by_name, mut zeroings) = (HashMap::new(), vec![Vec::new(); all]);
        for (w, _) in &record.writes {
            if w.kind == Kind::Data {
                by_name.insert(w.submit, *w);
            } else {
                zeroings[sectors(w, all)].iter_mut().for_each(|z| z.push((w.submit, w.complete)));
            }
        }
        Self { ahead, by_name, zeroings, last: vec![0; all] }
    }

    /// What was durable at `stamp` must be there from now on; calls `changed` with the sectors of which that is new.
    pub(crate) fn advance(&mut self, stamp: u64, mut changed: impl FnMut(std::ops::Range<usize>)) {
        while let Some((w, durable)) = self.ahead.pop() {
            if durable >= stamp {
                self.ahead.push((w, durable));
                return;
            }
            if w.kind != Kind::MaybeZero {
                let range = sectors(&w, self.last.len());
                self.last[range.clone()].iter_mut().for_each(|last| *last = w.submit.max(*last));
                changed(range);
            }
        }
    }

    /// Checks what a sector holds, when nothing was submitted yet at stamp `end`; gives words if it is wrong.
    pub(crate) fn check(&self, s: usize, what: Seen, end: u64) -> Result<(), String> {
        let (Some(&last), Some(zeroings)) = (self.last.get(s), self.zeroings.get(s)) else {
            return Err(format!("there is no sector {s}"));
        };
        let here = |w: &&Write| sectors(w, self.last.len()).contains(&s);
        let found = match what {
            Seen::Bad(bad) => bad.to_string(),
            Seen::Stamp(n) => match self.by_name.get(&n).filter(here) {
                None => format!("write #{n}, which was never made here"),
                Some(w) if n >= end => format!("{w}, later than {end}"),
                Some(w) if w.complete < last => w.to_string(),
                Some(_) => return Ok(()),
            },
            Seen::Zero => {
                let zeroed = |&(submit, complete): &(u64, u64)| submit < end && complete >= last;
                if last == 0 || zeroings.iter().any(zeroed) {
                    return Ok(());
                }
                "zeroes".into()
            }
        };
        Err(format!("sector {s}: {found}, but write #{last} was durable"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::PENDING;

    #[test]
    fn the_durable_is_there_and_the_rest_may_be() {
        let write = |submit, complete, kind, durable| {
            let w =
                Write { submit, complete, sector: 0, sectors: 1, kind, whole: false, writer: 0 };
            (w, durable)
        };
        let writes = vec![
            write(1, 2, Kind::Data, 3),
            write(4, 9, Kind::Data, PENDING),
            write(5, 6, Kind::Data, 10),
            write(20, 21, Kind::Zero, 30),
            write(40, PENDING, Kind::Data, PENDING),
        ];
        let mut d = Durability::new(&Record { run: 0, sectors: 1, writes });
        let ok = |d: &Durability, seen| d.check(0, seen, 50).is_ok();
        let mut new = Vec::new();
        assert!(ok(&d, Seen::Zero) && ok(&d, Seen::Stamp(1)) && !ok(&d, Seen::Stamp(2)));
        d.advance(10, |range| new.push((range.start, range.end)));
        assert_eq!(new, [(0, 1)]);
        // A zeroing that was not durable may be there, but not before it was sent.
        assert!(ok(&d, Seen::Zero) && ok(&d, Seen::Stamp(1)) && ok(&d, Seen::Stamp(4)));
        assert!(d.check(0, Seen::Zero, 20).is_err() && d.check(0, Seen::Stamp(4), 4).is_err());
        d.advance(11, |_| {});
        assert!(!ok(&d, Seen::Stamp(1)) && ok(&d, Seen::Stamp(4)) && ok(&d, Seen::Stamp(40)));
        d.advance(31, |_| {});
        assert!(!ok(&d, Seen::Stamp(5)) && ok(&d, Seen::Zero) && ok(&d, Seen::Stamp(40)));
        assert!(d.check(1, Seen::Zero, 50).is_err());
    }
}
