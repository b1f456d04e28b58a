// SPDX-License-Identifier: GPL-2.0-only

//! Takes snapshots by a command, and checks their images, in order, while the writers go on.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{bail, Context, Result};

use crate::check::{check, prune, Cut};
use crate::device::read_image;
use crate::writer::Shared;

/// Violations printed for one image.
const SHOWN: usize = 8;

/// The commands, with placeholders.
pub(crate) struct Templates {
    /// Takes a snapshot, prints the id.
    pub(crate) snapshot: String,
    /// Makes the image readable, prints its path.
    pub(crate) verify: String,
    /// Cleans up.
    pub(crate) done: Option<String>,
    /// Path of the device, for the placeholder.
    pub(crate) device: String,
}

#[derive(Clone, Debug)]
struct Taken {
    n: u32,
    id: String,
    cut: Cut,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Taken>,
    taking: Option<u64>,
    no_more: bool,
    previous: String,
    verified: u32,
    violations: u64,
}

/// The snapshots of a run.
pub(crate) struct Snapshots<'a> {
    shared: &'a Shared,
    templates: Templates,
    lag: usize,
    alone: bool,
    /// Nothing is forgotten.
    pub(crate) keep_history: bool,
    state: Mutex<State>,
    changed: Condvar,
    log: Option<Mutex<File>>,
    start: Instant,
}

impl<'a> Snapshots<'a> {
    /// None taken yet.
    pub(crate) fn new(
        shared: &'a Shared,
        templates: Templates,
        lag: usize,
        alone: bool,
        log: Option<&Path>,
    ) -> Result<Self> {
        let log = match log {
            Some(p) => {
                Some(Mutex::new(File::create(p).with_context(|| format!("--log {}", p.display()))?))
            }
            None => None,
        };
        let state = Mutex::new(State::default());
        let changed = Condvar::new();
        Ok(Self {
            shared,
            templates,
            lag,
            alone,
            keep_history: false,
            state,
            changed,
            log,
            start: Instant::now(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something on stderr and in the log.
    pub(crate) fn say(&self, words: &str) {
        let line = format!("[{:8.3}] {words}", self.start.elapsed().as_secs_f64());
        eprintln!("{line}");
        if let Some(log) = &self.log {
            let _ = writeln!(log.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
        }
    }

    fn shell(&self, template: &str, n: u32, id: &str, prev: &str) -> Result<String> {
        let command = template
            .replace("{id}", id)
            .replace("{prev}", prev)
            .replace("{n}", &n.to_string())
            .replace("{device}", &self.templates.device);
        let out = Command::new("sh")
            .arg("-c")
            .arg(&command)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run `{command}`"))?;
        if !out.status.success() {
            bail!("`{command}`: {}", out.status);
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Takes one; waits first when too many are unchecked.
    pub(crate) fn take(&self, n: u32) -> Result<()> {
        let mut state = self.state();
        let most = if self.alone { 0 } else { self.lag + 1 };
        while state.queue.len() > most {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // From here on nothing completed later than this may be pruned.
        let begin = self.shared.history.stamp();
        state.taking = Some(begin);
        drop(state);
        let from = Instant::now();
        let result = self.shell(&self.templates.snapshot, n, "", "");
        let end = self.shared.history.stamp();
        let mut state = self.state();
        state.taking = None;
        let out = result?;
        let id = out.split(|c: char| !c.is_ascii_digit()).find(|w| !w.is_empty());
        let Some(id) = id else { bail!("the snapshot command printed no id: {out:?}") };
        let taken = Taken { n, id: id.to_string(), cut: Cut { begin, end } };
        state.queue.push_back(taken);
        drop(state);
        self.changed.notify_all();
        self.say(&format!(
            "snapshot {n}: id {id}, stamps {begin}..{end}, {:.1} ms",
            from.elapsed().as_secs_f64() * 1e3
        ));
        Ok(())
    }

    /// No further snapshots will be taken: the lag ends.
    pub(crate) fn no_more(&self) {
        self.state().no_more = true;
        self.changed.notify_all();
    }

    /// Checks images until there are no more.
    pub(crate) fn verify_loop(&self) {
        loop {
            let mut state = self.state();
            let next = loop {
                let lag = if state.no_more { 0 } else { self.lag };
                if state.queue.len() > lag {
                    break state.queue.front().cloned();
                }
                if state.no_more {
                    break None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            let Some(next) = next else { return };
            let previous = state.previous.clone();
            drop(state);
            let result = self.verify(&next, &previous);
            let mut state = self.state();
            match result {
                Ok(violations) => {
                    state.verified += 1;
                    state.violations += violations;
                    state.previous.clone_from(&next.id);
                }
                Err(e) => {
                    state.violations += 1;
                    self.say(&format!("VIOLATION: snapshot {} cannot be checked: {e:#}", next.id));
                }
            }
            state.queue.pop_front();
            drop(state);
            self.changed.notify_all();
            self.prune();
        }
    }

    fn verify(&self, t: &Taken, previous: &str) -> Result<u64> {
        let from = Instant::now();
        let out = self.shell(&self.templates.verify, t.n, &t.id, previous)?;
        let path = out.lines().map(str::trim).rfind(|l| !l.is_empty());
        let Some(path) = path else { bail!("the verify command printed no path") };
        let violations = self.check_image(Path::new(path), t.cut, &format!("snapshot {}", t.id))?;
        if let Some(done) = &self.templates.done {
            self.shell(done, t.n, &t.id, previous)?;
        }
        self.say(&format!("snapshot {}: checked in {:.2} s", t.id, from.elapsed().as_secs_f64()));
        Ok(violations)
    }

    fn check_image(&self, path: &Path, cut: Cut, name: &str) -> Result<u64> {
        let seen = read_image(path, self.shared.device.sectors, self.shared.run)?;
        let history = self.shared.history.copy();
        let report = check(&history, &seen, cut, SHOWN);
        self.say(&format!(
            "{name}: {} of {} sectors carry data, {} writes in the history, {} violations",
            report.stamped,
            seen.len(),
            history.len(),
            report.count
        ));
        for v in &report.violations {
            self.say(&format!(
                "VIOLATION: {name}, sector {} (byte {}): found {}; expected {}",
                v.sector,
                v.sector * 512,
                v.found,
                v.expected
            ));
        }
        if report.count > 0 {
            self.say(&format!("{name}: T0 is bounded from below by {}", report.bound));
        }
        Ok(report.count)
    }

    /// Forgets what no later image can show.
    fn prune(&self) {
        if self.keep_history {
            return;
        }
        let before = {
            let state = self.state();
            let unchecked = state.queue.front().map(|t| t.cut.begin);
            unchecked.or(state.taking).unwrap_or_else(|| self.shared.history.stamp())
        };
        let history = self.shared.history.copy();
        let kept = prune(&history, self.shared.device.sectors as usize, before);
        self.shared.history.replace(before, &kept);
    }

    /// Checks the device itself, at rest.
    pub(crate) fn verify_device(&self, path: &Path) -> Result<()> {
        let begin = self.shared.history.stamp();
        let cut = Cut { begin, end: self.shared.history.stamp() };
        let violations = self.check_image(path, cut, "the device at the end")?;
        self.state().violations += violations;
        Ok(())
    }

    /// Snapshots verified, violations found.
    pub(crate) fn totals(&self) -> (u32, u64) {
        let state = self.state();
        (state.verified, state.violations)
    }
}
