// SPDX-License-Identifier: GPL-2.0-only

//! Stands in for the `kernel` crate of a kernel, as far as presnap's target uses it, on a simulated
//! machine. What it does is what the kernel's documentation promises, and no more.

pub mod alloc;
pub mod error;
pub mod init;
pub mod prelude;
pub mod sync;
pub mod time;

#[doc(hidden)]
pub use presnap_machine as machine;

/// Says something that is an error.
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { $crate::machine::note!("err: {}", format_args!($($arg)*)) };
}

/// Says something that is a warning.
#[macro_export]
macro_rules! pr_warn {
    ($($arg:tt)*) => { $crate::machine::note!("warn: {}", format_args!($($arg)*)) };
}

/// Says something.
#[macro_export]
macro_rules! pr_info {
    ($($arg:tt)*) => { $crate::machine::note!("info: {}", format_args!($($arg)*)) };
}
