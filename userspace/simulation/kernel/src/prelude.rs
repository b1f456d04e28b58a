// SPDX-License-Identifier: GPL-2.0-only

//! What everybody uses.

pub use crate::alloc::{KBox, KVVec, KVec, GFP_KERNEL};
pub use crate::error::code::*;
pub use crate::error::{Error, Result};
pub use crate::init::PinInit;
pub use crate::{pr_err, pr_info, pr_warn, try_pin_init};
pub use core::ffi::CStr;
pub use core::pin::Pin;
pub use presnap_simulation_macros::pin_data;
