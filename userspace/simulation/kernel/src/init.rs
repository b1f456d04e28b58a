// SPDX-License-Identifier: GPL-2.0-only

//! Initialisation in place. Nothing here cares where it lies, so an initialiser is a value.

use crate::error::{Error, Result};

/// What makes a `T`.
pub trait PinInit<T, E = Error>: Sized {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// Those of what is made.
    fn make(self) -> Result<T, E>;
}

impl<T> PinInit<T> for Result<T> {
    fn make(self) -> Result<T> {
        self
    }
}

/// Makes a struct from initialisers (`field <- init`) and values (`field: value`, `field`).
#[macro_export]
macro_rules! try_pin_init {
    ($type:ident { $($fields:tt)* } ? $error:ty) => {
        $crate::try_pin_init!(@ $type $error, [] $($fields)*)
    };
    (@ $type:ident $error:ty, [$($done:tt)*]) => {
        (|| -> $crate::error::Result<$type, $error> { Ok($type { $($done)* }) })()
    };
    (@ $type:ident $error:ty, [$($done:tt)*] $field:ident <- $init:expr, $($rest:tt)*) => {
        $crate::try_pin_init!(@ $type $error,
            [$($done)* $field: $crate::init::PinInit::<_, $error>::make($init)?,] $($rest)*)
    };
    (@ $type:ident $error:ty, [$($done:tt)*] $field:ident: $value:expr, $($rest:tt)*) => {
        $crate::try_pin_init!(@ $type $error, [$($done)* $field: $value,] $($rest)*)
    };
    (@ $type:ident $error:ty, [$($done:tt)*] $field:ident, $($rest:tt)*) => {
        $crate::try_pin_init!(@ $type $error, [$($done)* $field,] $($rest)*)
    };
}
