// SPDX-License-Identifier: GPL-2.0-only

//! What had been promised before a power loss, from the marks in the log.

use std::collections::BTreeSet;

use anyhow::{bail, Context, Result};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promises {
    /// What was durable at this stamp.
    pub(crate) stamp: u64,
    /// The highest operation number seen.
    pub(crate) op: u64,
    /// Reported, and nobody wants them deleted.
    pub(crate) sealed: BTreeSet<u32>,
    /// The newest that was ever reported.
    pub(crate) newest: u32,
    /// All up to this one were deleted.
    pub(crate) deleted: u32,
    /// The round of the file system's writer.
    pub(crate) round: u64,
}

impl Promises {
    /// Takes in a mark.
    pub(crate) fn mark(&mut self, mark: &str) -> Result<()> {
        let words: Vec<&str> = mark.split(':').collect();
        let id = |word: &str| word.parse::<u32>().context("not an id");
        match words[..] {
            ["begin" | "dm-log-writes-end"] => {}
            ["durable", stamp, "op", op] => {
                self.stamp = self.stamp.max(stamp.parse()?);
                self.op = self.op.max(op.parse()?);
            }
            ["sealed", word] => {
                self.sealed.insert(id(word)?);
                self.newest = self.newest.max(id(word)?);
            }
            ["deleting", word] => {
                let upto = id(word)?;
                self.sealed.retain(|&other| other > upto);
            }
            ["deleted", word] => self.deleted = self.deleted.max(id(word)?),
            ["fs", round] => self.round = self.round.max(round.parse()?),
            _ => bail!("unknown"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_add_up() {
        let mut p = Promises::default();
        for mark in ["begin", "durable:7:op:9", "sealed:1", "sealed:3", "deleting:1", "fs:4"] {
            p.mark(mark).unwrap();
        }
        assert_eq!((p.stamp, p.op, p.newest, p.deleted, p.round), (7, 9, 3, 0, 4));
        assert_eq!(p.sealed, [3].into());
        p.mark("deleted:1").unwrap();
        assert_eq!(p.deleted, 1);
        assert!(p.mark("sealed:x").is_err() && p.mark("durable:7").is_err());
    }
}
