// SPDX-License-Identifier: GPL-2.0-only

//! Global mutexes: one for each thread, because each simulates a machine of its own.

/// Declares a module with a global mutex and the function that initialises it.
#[macro_export]
macro_rules! global_mutex {
    (mod $module:ident, static $name:ident: Mutex<$type:ty> = $value:expr) => {
        mod $module {
            use super::*;
            use $crate::kernel_crate::sync::{Guard, Mutex};

            thread_local! {
                // Never freed: there are as many as threads.
                static PLACE: &'static Mutex<$type> =
                    std::boxed::Box::leak(std::boxed::Box::new(Mutex::new($value)));
            }

            pub(super) struct Global;

            impl Global {
                pub(super) fn lock(&self) -> Guard<'static, $type, false> {
                    PLACE.with(|place| *place).lock()
                }
            }

            pub(super) static $name: Global = Global;

            /// Nothing is to be initialised here.
            pub(super) fn init() {}
        }
    };
}
