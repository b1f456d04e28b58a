// SPDX-License-Identifier: GPL-2.0-only

//! Global mutexes, for what a module must find from anywhere.

/// Declares a module with a global mutex and the function that initialises it.
///
/// The function must be called once, before anything else touches the mutex: first of all in the
/// module's initialisation. In its use:
///
/// ```ignore
/// global_mutex!(mod entries, static ENTRIES: Mutex<KVec<Entry>> = KVec::new());
/// ```
#[macro_export]
macro_rules! global_mutex {
    (mod $module:ident, static $name:ident: Mutex<$type:ty> = $value:expr) => {
        mod $module {
            use super::*;

            $crate::kernel_crate::sync::global_lock! {
                // SAFETY: Initialised by `init` below, which the module calls before all else.
                pub(super) unsafe(uninit) static $name: Mutex<$type> = $value;
            }

            /// Initialises the mutex. Further calls do nothing.
            pub(super) fn init() {
                static ONCE: core::sync::atomic::AtomicBool =
                    core::sync::atomic::AtomicBool::new(false);
                if !ONCE.swap(true, core::sync::atomic::Ordering::SeqCst) {
                    // SAFETY: Called once, as the flag says.
                    unsafe { $name.init() };
                }
            }
        }
    };
}
