// SPDX-License-Identifier: GPL-2.0-only

//! The oracle of content of `presnap-torture`, `presnap-powerloss` and `presnap-cut`.

mod check;
pub mod cut;
mod device;
mod durable;
mod history;
pub mod powerloss;
mod record;
mod rng;
mod sector;
mod snapshots;
pub mod torture;
mod writelog;
mod writer;
