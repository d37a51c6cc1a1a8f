//! The driver's functions.

#![allow(non_snake_case)]

macro_rules! exports {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) |$world:ident| $body:block)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> i32 {
            enter(stringify!($name), |$world| -> Result<(), i32> { $body })
        }
    )*};
}

mod device;
mod memory;
mod work;

use crate::abi::{INVALID_VALUE, OK, Out, describe};

fn tell(text: Option<&'static [u8]>, out: Out<*const u8>) -> i32 {
    out.set(text.map_or(std::ptr::null(), <[u8]>::as_ptr));
    if text.is_some() { OK } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: i32, text: Out<*const u8>) -> i32 {
    tell(describe(code).map(|texts| texts.0), text)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: i32, text: Out<*const u8>) -> i32 {
    tell(describe(code).map(|texts| texts.1), text)
}
