// SPDX-License-Identifier: GPL-2.0-only

//! `#[pin_data]` for the kernel crate's stand-in: nothing moves there that was pinned, so the marks
//! of pinned fields are taken away and nothing is put in their place.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Takes `#[pin]` away from the fields.
#[proc_macro_attribute]
pub fn pin_data(_args: TokenStream, item: TokenStream) -> TokenStream {
    item.into_iter()
        .map(|token| match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                TokenTree::Group(Group::new(Delimiter::Brace, without_pin(group.stream())))
            }
            other => other,
        })
        .collect()
}

fn without_pin(fields: TokenStream) -> TokenStream {
    let mut out: Vec<TokenTree> = Vec::new();
    for token in fields {
        let is_pin = matches!(&token, TokenTree::Group(g) if g.stream().to_string() == "pin");
        let after_hash = matches!(out.last(), Some(TokenTree::Punct(p)) if p.as_char() == '#');
        if is_pin && after_hash {
            out.pop();
        } else {
            out.push(token);
        }
    }
    out.into_iter().collect()
}
