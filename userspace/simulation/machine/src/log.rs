// SPDX-License-Identifier: GPL-2.0-only

//! What was said and done lately, to be shown when something goes wrong.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;

/// Lines kept.
const LINES: usize = 4000;

thread_local! {
    static LOG: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Whether lines are kept: formatting them takes time.
pub fn turn_on(on: bool) {
    ON.set(on);
    LOG.take();
}

/// Whether lines are kept.
pub fn is_on() -> bool {
    ON.get()
}

/// Notes a line.
pub fn note(line: fmt::Arguments<'_>) {
    if !is_on() {
        return;
    }
    let now = crate::CURRENT.with_borrow(|m| m.as_ref().map(|m| (m.id, m.now.get())));
    let (id, ns) = now.unwrap_or_default();
    let line = format!("[m{id} {}.{:06} ms] {line}", ns / 1_000_000, ns % 1_000_000);
    let line = line.trim_end().to_owned();
    LOG.with_borrow_mut(|log| {
        if log.len() == LINES {
            log.pop_front();
        }
        log.push_back(line);
    });
}

/// Takes the lines.
pub fn take() -> Vec<String> {
    LOG.take().into()
}

/// Notes a line.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => {
        if $crate::log::is_on() {
            $crate::log::note(format_args!($($arg)*));
        }
    };
}
