// SPDX-License-Identifier: GPL-2.0-only

//! The log, replayed from point to point: what the two disks hold there, and what had been promised.

use anyhow::{ensure, Context, Result};
use presnap_blockio::Buffer;

use super::promises::Promises;
use super::tools::BLOCK;
use super::Args;
use crate::durable::Durability;
use crate::record::Record;
use crate::rng::Rng;
use crate::sector::{inspect, SECTOR};
use crate::writelog::{choose, lose, lose_cached, Entry, Point, State, WriteLog};

/// A power loss to be looked at.
pub(crate) struct Case {
    pub(crate) point: Point,
    /// Of how many writes, which only a flush of the other disk has made durable, some are lost, too.
    pub(crate) more: usize,
    pub(crate) promises: Promises,
    /// Of all choices there.
    pub(crate) seed: u64,
    /// How many came before it.
    pub(crate) number: usize,
    /// Runs of blocks, first and number, in which the disks are not yet what they have to be.
    pub(crate) changed: Vec<(usize, usize)>,
    /// What was durable and is not there.
    pub(crate) lost: Option<String>,
}

/// See the module.
pub(crate) struct Replay {
    log: WriteLog,
    points: Vec<Point>,
    next: usize,
    /// Entries that are in the state, or pending.
    done: usize,
    state: State,
    /// Writes to origin and region that only a flush of the other one has made durable.
    pending: [Vec<usize>; 2],
    /// No flush has come since the last one of this disk.
    fresh: [bool; 2],
    split: u64,
    promises: Promises,
    durability: Durability,
    /// Sectors of presnap-torture that are to be looked at again; and as a list.
    touched: Vec<bool>,
    list: Vec<usize>,
    /// Marks: the entry, and the stamp in it.
    stamps: Vec<(usize, u64)>,
    run: u64,
    rng: Rng,
}

fn touch(touched: &mut [bool], list: &mut Vec<usize>, range: std::ops::Range<usize>) {
    for s in range {
        if let Some(was @ false) = touched.get_mut(s) {
            *was = true;
            list.push(s);
        }
    }
}

impl Replay {
    /// At the beginning.
    pub(crate) fn new(args: &Args, log: WriteLog, record: &Record) -> Result<Self> {
        let begin = log.entries.iter().position(|e| e.mark.as_deref() == Some("begin"));
        let begin = begin.context("the log has no mark `begin`")?;
        let mut rng = Rng::new(args.seed);
        let points = choose(&log, begin, args.split, args.points, &mut rng);
        println!(
            "{} entries in the log, {begin} before the first point; {} writes",
            log.entries.len(),
            record.writes.len()
        );
        let mut stamps = Vec::new();
        for (i, e) in log.entries.iter().enumerate() {
            let mut at = Promises::default();
            if let Some(mark) = &e.mark {
                at.mark(mark).with_context(|| format!("mark `{mark}`"))?;
            }
            if at.stamp > 0 {
                stamps.push((i, at.stamp));
            }
        }
        let flushes = |region| {
            let which = |e: &&Entry| e.is_flush() && (e.sector >= args.split) == region;
            log.entries.iter().filter(which).count()
        };
        println!("{} flushes of the origin, {} of the region", flushes(false), flushes(true));
        ensure!(
            flushes(false) > 0 && flushes(true) > 0,
            "the log does not tell whose flushes they are"
        );
        let sectors = (args.split + args.region_sectors) as usize;
        ensure!(record.sectors <= args.split, "the history is of a larger device");
        Ok(Self {
            log,
            points,
            next: 0,
            done: 0,
            state: State(Buffer::new(sectors * SECTOR)),
            pending: [Vec::new(), Vec::new()],
            fresh: [true; 2],
            split: args.split,
            promises: Promises::default(),
            durability: Durability::new(record),
            touched: vec![false; record.sectors as usize],
            list: Vec::new(),
            stamps,
            run: record.run,
            rng,
        })
    }

    /// Goes on to the next point, and makes of `disks`, both of them, what is there after it.
    pub(crate) fn next(&mut self, disks: &mut Buffer) -> Result<Option<Case>> {
        let Some(&point) = self.points.get(self.next) else { return Ok(None) };
        for i in self.done..point.durable {
            self.take(i)?;
        }
        self.done = point.durable;
        let (touched, list) = (&mut self.touched, &mut self.list);
        self.durability.advance(self.promises.stamp, |range| touch(touched, list, range));
        // Whatever is in the log up to here was sent before the mark after the next was made.
        let after = self.stamps.partition_point(|(i, _)| *i < point.end);
        let end = self.stamps.get(after + 1).map_or(u64::MAX, |(_, stamp)| *stamp);

        let seed = self.rng.next();
        let mut undo: Vec<(u64, Vec<u8>)> = Vec::new();
        let (state, log) = (&mut self.state, &mut self.log);
        let mut put = |sector: u64, data: &[u8]| {
            let from = sector as usize * SECTOR;
            let before = state.0.get(from..from + data.len()).context("beyond the end")?.to_vec();
            undo.push((sector, before));
            touch(touched, list, sector as usize..sector as usize + data.len() / SECTOR);
            state.put(sector, data)
        };
        let mut choices = Rng::new(seed);
        let mut more = 0;
        for pending in &self.pending {
            if !pending.is_empty() && choices.chance(50) {
                lose_cached(log, pending, &mut choices, &mut put)?;
                more += pending.len();
            } else {
                for &i in pending {
                    log.apply(i, |_| true, &mut put)?;
                }
            }
        }
        lose(log, point, &mut choices, &mut put)?;
        let mut lost = None;
        for &s in &*list {
            let what = inspect(&state.0[s * SECTOR..][..SECTOR], s as u64, self.run);
            lost = lost.or(self.durability.check(s, what, end).err());
            touched[s] = false;
        }
        list.clear();
        let changed = bring(&state.0, disks);
        for (sector, before) in undo.into_iter().rev() {
            let from = sector as usize * SECTOR;
            touch(touched, list, sector as usize..sector as usize + before.len() / SECTOR);
            state.0[from..from + before.len()].copy_from_slice(&before);
        }
        self.next += 1;
        let promises = self.promises.clone();
        Ok(Some(Case { point, more, promises, seed, number: self.next - 1, changed, lost }))
    }

    /// Takes an entry in.
    fn take(&mut self, i: usize) -> Result<()> {
        let entry = self.log.entries.get(i).context("no such entry")?;
        if let Some(mark) = &entry.mark {
            return self.promises.mark(mark).with_context(|| format!("mark `{mark}`"));
        }
        let disk = usize::from(entry.sector >= self.split);
        if entry.is_cached() {
            self.pending[disk].push(i);
            return Ok(());
        }
        if !entry.is_flush() {
            return self.put(i);
        }
        // Of two flushes at a time the log may have that of a disk before the writes that it made durable.
        let other = 1 - disk;
        let both =
            if std::mem::take(&mut self.fresh[other]) { [true; 2] } else { [disk == 0, disk == 1] };
        for (of, _) in both.iter().enumerate().filter(|(_, now)| **now) {
            for i in std::mem::take(&mut self.pending[of]) {
                self.put(i)?;
            }
        }
        self.fresh[disk] = true;
        Ok(())
    }

    fn put(&mut self, i: usize) -> Result<()> {
        let (state, touched, list) = (&mut self.state, &mut self.touched, &mut self.list);
        self.log.apply(i, |_| true, &mut |sector, data| {
            let from = sector as usize;
            touch(touched, list, from..from + data.len() / SECTOR);
            state.put(sector, data)
        })
    }

    /// No more points.
    pub(crate) fn stop(&mut self) {
        self.points.truncate(self.next);
    }
}

/// Makes `to` equal to `from`; returns the runs of blocks that were not.
fn bring(from: &[u8], to: &mut [u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, (from, to)) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)).enumerate() {
        if from == to {
            continue;
        }
        to.copy_from_slice(from);
        match runs.last_mut() {
            Some((first, n)) if *first + *n == i => *n += 1,
            _ => runs.push((i, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_brought() {
        let from: Vec<u8> = (0..6).flat_map(|i| [i; BLOCK]).collect();
        let mut to = from.clone();
        for block in [1, 2, 5] {
            to[block * BLOCK + 7] = 9;
        }
        assert_eq!(bring(&from, &mut to), [(1, 2), (5, 1)]);
        assert!(to == from && bring(&from, &mut to).is_empty());
    }
}
