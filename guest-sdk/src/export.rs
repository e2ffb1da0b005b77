//! The macro that makes a crate a module.

/// Exports a [`StateMachine`](crate::StateMachine) as the module's one machine.
///
/// * `export!(Machine)`: JSON;
/// * `export!(Machine, bincode)`, `export!(Machine, raw)`: another [codec](crate::codec);
/// * `export!(Machine, codec = MyCodec)`: your own;
/// * any of them with `, migrate` at the end, for a machine with [`Migrate`](crate::Migrate);
/// * `export!(Machine, raw, adapter = MyAdapter)`, and likewise with the other codecs: with a wire protocol of its
///   own, see [`adapter`](crate::adapter).
///
/// Call it once, in the crate that is compiled to the `cdylib`. On other targets than wasm32 it
/// adds nothing, and the crate is an ordinary library for tests. The ABI's exported names need an
/// attribute that the lint `unsafe_code` dislikes: the macro allows it for itself, which `deny`
/// permits and `forbid` does not.
#[macro_export]
macro_rules! export {
    ($machine:ty) => {
        $crate::export!($machine, codec = $crate::codec::Json);
    };
    ($machine:ty, migrate) => {
        $crate::export!($machine, codec = $crate::codec::Json, migrate);
    };
    ($machine:ty, json, adapter = $adapter:ty) => {
        $crate::export!($machine, codec = $crate::codec::Json, adapter = $adapter);
    };
    ($machine:ty, json $(, $more:ident)?) => {
        $crate::export!($machine, codec = $crate::codec::Json $(, $more)?);
    };
    ($machine:ty, bincode, adapter = $adapter:ty) => {
        $crate::export!($machine, codec = $crate::codec::Bincode, adapter = $adapter);
    };
    ($machine:ty, bincode $(, $more:ident)?) => {
        $crate::export!($machine, codec = $crate::codec::Bincode $(, $more)?);
    };
    ($machine:ty, raw, adapter = $adapter:ty) => {
        $crate::export!($machine, codec = $crate::codec::Raw, adapter = $adapter);
    };
    ($machine:ty, raw $(, $more:ident)?) => {
        $crate::export!($machine, codec = $crate::codec::Raw $(, $more)?);
    };
    ($machine:ty, codec = $codec:ty) => {
        $crate::__export_module!($machine, $codec, $crate::adapter::NoAdapter, {});
    };
    ($machine:ty, codec = $codec:ty, adapter = $adapter:ty) => {
        $crate::__export_module!($machine, $codec, $adapter, {
            #[unsafe(no_mangle)]
            extern "C" fn adapter_open(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.adapter_open(argument, length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn adapter_step(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.adapter_step(argument, length))
            }
        });
    };
    ($machine:ty, codec = $codec:ty, migrate) => {
        $crate::__export_module!($machine, $codec, $crate::adapter::NoAdapter, {
            #[unsafe(no_mangle)]
            extern "C" fn migrate(_argument: *const u8, _length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.migrate())
            }
        });
    };
}

/// The exports themselves, with the optional ones in braces.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_module {
    ($machine:ty, $codec:ty, $adapter:ty, { $($optional:item)* }) => {
        // A machine the codec cannot speak for is told on every target, not only on wasm32.
        const _: fn() = || {
            fn speaks<M: $crate::StateMachine, C: $crate::codec::Codec<M>, A: $crate::adapter::Adapter>() {}
            speaks::<$machine, $codec, $adapter>();
        };

        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code)]
        const _: () = {
            ::std::thread_local! {
                static MODULE: ::core::cell::RefCell<$crate::wasm::Module<$machine, $codec, $adapter>> =
                    ::core::default::Default::default();
            }

            #[unsafe(no_mangle)]
            extern "C" fn statehouse_abi_1() {
                MODULE.with_borrow_mut(|module| module.start());
            }

            #[unsafe(no_mangle)]
            extern "C" fn alloc(length: usize) -> *mut u8 {
                MODULE.with_borrow_mut(|module| module.alloc(length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn init(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.init(argument, length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn apply(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.apply(argument, length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn query(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.query(argument, length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn timer(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.timer(argument, length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn session_end(argument: *const u8, length: usize) -> u64 {
                MODULE.with_borrow_mut(|module| module.session_end(argument, length))
            }

            #[unsafe(no_mangle)]
            extern "C" fn snapshot() -> u64 {
                MODULE.with_borrow_mut(|module| module.snapshot())
            }

            #[unsafe(no_mangle)]
            extern "C" fn restore() -> u64 {
                MODULE.with_borrow_mut(|module| module.restore())
            }

            $($optional)*
        };
    };
}
