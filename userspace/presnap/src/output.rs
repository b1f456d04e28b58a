// SPDX-License-Identifier: GPL-2.0-only

//! What the user sees: JSON or words, progress on a terminal, wrong usage.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

/// Wrong usage that only shows after the arguments were parsed: exit status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An exit status with a meaning of its own; the reason is printed already.
#[derive(Debug)]
pub(crate) struct Status(pub(crate) u8);

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for Status {}

/// An error of wrong usage.
pub(crate) fn usage(words: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Usage(words.into()))
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Prints rows as a table: the first row is the heading; numbers (all but the first heading letter) stand right.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:<w$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

/// A line on stderr that is rewritten while something lasts; silent unless stderr is a terminal or it is forced.
pub(crate) struct Progress {
    shown: bool,
    terminal: bool,
    start: Instant,
    last: Option<Instant>,
    wrote: bool,
}

impl Progress {
    /// Progress on a terminal; with `force` also elsewhere, as lines.
    pub(crate) fn new(force: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let start = Instant::now();
        Self { shown: terminal || force, terminal, start, last: None, wrote: false }
    }

    /// Shows `words()`, not more often than a terminal needs (or once in 5 s elsewhere).
    pub(crate) fn show(&mut self, words: impl FnOnce() -> String) {
        let pause = if self.terminal { 100 } else { 5000 };
        if !self.shown || self.last.is_some_and(|l| l.elapsed() < Duration::from_millis(pause)) {
            return;
        }
        self.last = Some(Instant::now());
        self.wrote = true;
        if self.terminal {
            eprint!("\r\x1b[K{}", words());
        } else {
            eprintln!("{}", words());
        }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Progress only where it is asked for.
    pub(crate) fn only_if(asked: bool) -> Self {
        let mut progress = Self::new(asked);
        progress.shown = asked;
        progress
    }

    /// Ends the line.
    pub(crate) fn done(&mut self) {
        if self.wrote && self.terminal {
            eprint!("\r\x1b[K");
        }
        self.wrote = false;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done();
    }
}
