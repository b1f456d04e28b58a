// SPDX-License-Identifier: GPL-2.0-only

//! The words of a table line or message, for the kernel's log.

use core::fmt;
use core::ops::Range;
use kernel::prelude::*;
use presnap_abi::dm::{Args, Constructor};

/// So much of them is shown.
const MOST_BYTES: usize = 160;

/// Some of the words as they were written; what is not printable is escaped, and what is long is cut.
pub(crate) struct Words<'a> {
    args: Args<'a>,
    range: Range<usize>,
}

impl<'a> Words<'a> {
    /// Those with these numbers.
    pub(crate) fn new(args: Args<'a>, range: Range<usize>) -> Self {
        Self { args, range }
    }

    /// All of them.
    pub(crate) fn all(args: Args<'a>) -> Self {
        Self::new(args, 0..args.len())
    }
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = MOST_BYTES;
        let mut separator = "";
        for word in self.range.clone().filter_map(|i| self.args.get(i)) {
            f.write_str(separator)?;
            separator = " ";
            let shown = word.get(..room).unwrap_or(word);
            write!(f, "{}", shown.escape_ascii())?;
            if shown.len() < word.len() {
                return f.write_str("...");
            }
            room = room.saturating_sub(word.len());
        }
        Ok(())
    }
}

/// Says which words of a table line are wrong: in `ti->error` what they should be, in the log what they are.
pub(crate) fn refuse(
    ctor: &mut Constructor<'_>,
    args: Args<'_>,
    range: Range<usize>,
    error: &'static CStr,
) {
    let words = Words::new(args, range);
    let why = error.to_str().unwrap_or("bad words");
    let md = ctor.mapped_device();
    md.with_name(|name| pr_err!("{name}: {why}: {}\n", format_args!("{words}")));
    ctor.error(error);
}
