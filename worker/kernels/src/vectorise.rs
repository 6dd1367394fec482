//! Loops compiled for the vectors that the machine has.

/// Runs a block with the machine's widest vectors. The block takes the named values; being the body of a method that is
/// always inlined, it is compiled anew for each kind of machine, which a closure is not.
macro_rules! vectorise {
    (($($name:ident: $type:ty),* $(,)?) $body:block) => {{
        struct Block<'a> {
            $($name: $type),*
        }
        impl<'a> pulp::WithSimd for Block<'a> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: pulp::Simd>(self, _: S) {
                let Block { $($name),* } = self;
                $body
            }
        }
        pulp::Arch::new().dispatch(Block { $($name),* })
    }};
}

pub(crate) use vectorise;
