// SPDX-License-Identifier: GPL-2.0-only

//! Progress on standard error: a line that renews itself on a terminal, a few lines elsewhere.

use std::io::{stderr, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shows how far a step has come.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    terminal: bool,
    step: String,
    began: Instant,
    shown: Option<(u64, Instant)>,
}

impl Progress {
    /// Shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let now = Instant::now();
        Self {
            quiet,
            terminal: stderr().is_terminal(),
            step: String::new(),
            began: now,
            shown: None,
        }
    }

    /// Begins a step.
    pub fn step(&mut self, name: impl Into<String>) {
        self.finish("");
        self.step = name.into();
        self.began = Instant::now();
        self.shown = None;
        self.show(0, "");
    }

    /// Says how far the step is, `done` of `all`, and what else is worth knowing.
    pub fn at(&mut self, done: u64, all: u64, note: &str) {
        let percent = (done * 100).checked_div(all).unwrap_or(100);
        let pause = Duration::from_millis(if self.terminal { 100 } else { 5000 });
        if self.shown.is_none_or(|(p, at)| p != percent && at.elapsed() >= pause) {
            self.show(percent, note);
        }
    }

    /// Ends the step.
    pub fn finish(&mut self, note: &str) {
        if !self.step.is_empty() && !self.quiet {
            let end = if self.terminal { "\r\x1b[K" } else { "" };
            eprintln!("{end}{}: {:.1} s{note}", self.step, self.began.elapsed().as_secs_f32());
        }
        self.step.clear();
    }

    fn show(&mut self, percent: u64, note: &str) {
        self.shown = Some((percent, Instant::now()));
        if self.quiet {
            return;
        }
        if self.terminal {
            eprint!("\r\x1b[K{}: {percent} %{note}", self.step);
            let _ = stderr().flush();
        } else if percent > 0 {
            eprintln!("{}: {percent} %{note}", self.step);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && !self.quiet && !self.step.is_empty() {
            eprintln!();
        }
    }
}
