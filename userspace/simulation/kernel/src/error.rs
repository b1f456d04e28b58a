// SPDX-License-Identifier: GPL-2.0-only

//! Errors by their numbers.

/// An error number, negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(i32);

impl Error {
    /// The number.
    pub fn to_errno(self) -> i32 {
        self.0
    }
}

/// A result with an error number.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// The errors.
pub mod code {
    use super::Error;

    macro_rules! errors {
        ($($name:ident = $number:literal, $meaning:literal;)*) => {
            $(#[doc = $meaning] pub const $name: Error = Error(-$number);)*
        };
    }

    errors! {
        ENOENT = 2, "No such file or directory.";
        EIO = 5, "I/O error.";
        ENOMEM = 12, "Out of memory.";
        EACCES = 13, "Permission denied.";
        EFAULT = 14, "Bad address.";
        EBUSY = 16, "Device or resource busy.";
        ENODEV = 19, "No such device.";
        EINVAL = 22, "Invalid argument.";
        EFBIG = 27, "File too large.";
        ENOSPC = 28, "No space left on device.";
        EROFS = 30, "Read-only file system.";
        ENODATA = 61, "No data available.";
    }
}
