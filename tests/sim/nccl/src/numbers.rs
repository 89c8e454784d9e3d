//! Element types and what is done with elements.

use crate::{Code, Result};

/// `ncclDataType_t`, as far as it is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl Element {
    pub fn new(data: u32) -> Result<Element> {
        Ok(match data {
            0 => Element::I8,
            1 => Element::U8,
            2 => Element::I32,
            3 => Element::U32,
            4 => Element::I64,
            5 => Element::U64,
            7 => Element::F32,
            8 => Element::F64,
            _ => return Err(Code::InvalidArgument),
        })
    }

    pub fn bytes(self) -> usize {
        match self {
            Element::I8 | Element::U8 => 1,
            Element::I32 | Element::U32 | Element::F32 => 4,
            Element::I64 | Element::U64 | Element::F64 => 8,
        }
    }
}

/// `ncclRedOp_t`, as far as it is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    Sum,
    Product,
    Max,
    Min,
}

impl Reduction {
    pub fn new(op: u32) -> Result<Reduction> {
        [Reduction::Sum, Reduction::Product, Reduction::Max, Reduction::Min]
            .get(op as usize)
            .copied()
            .ok_or(Code::InvalidArgument)
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AllReduce(Reduction),
    ReduceScatter(Reduction),
    Reduce { op: Reduction, root: usize },
    AllGather,
    Broadcast { root: usize },
    Send { peer: usize },
    Receive { peer: usize },
}

/// Adds `other` to `sum`, element by element.
pub fn reduce(sum: &mut [u8], other: &[u8], element: Element, op: Reduction) {
    macro_rules! each {
        ($type:ty, $add:expr, $multiply:expr) => {{
            const N: usize = size_of::<$type>();
            for (a, b) in sum.chunks_exact_mut(N).zip(other.chunks_exact(N)) {
                let (mut x, mut y) = ([0u8; N], [0u8; N]);
                x.copy_from_slice(a);
                y.copy_from_slice(b);
                let (x, y) = (<$type>::from_le_bytes(x), <$type>::from_le_bytes(y));
                let z: $type = match op {
                    Reduction::Sum => $add(x, y),
                    Reduction::Product => $multiply(x, y),
                    Reduction::Max => {
                        if y > x {
                            y
                        } else {
                            x
                        }
                    }
                    Reduction::Min => {
                        if y < x {
                            y
                        } else {
                            x
                        }
                    }
                };
                a.copy_from_slice(&z.to_le_bytes());
            }
        }};
    }
    macro_rules! integers {
        ($type:ty) => {
            each!($type, <$type>::wrapping_add, <$type>::wrapping_mul)
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            each!($type, |x: $type, y: $type| x + y, |x: $type, y: $type| x * y)
        };
    }
    match element {
        Element::I8 => integers!(i8),
        Element::U8 => integers!(u8),
        Element::I32 => integers!(i32),
        Element::U32 => integers!(u32),
        Element::I64 => integers!(i64),
        Element::U64 => integers!(u64),
        Element::F32 => floats!(f32),
        Element::F64 => floats!(f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_by_type() {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        for (op, expected) in [
            (Reduction::Sum, [3.0, -1.0]),
            (Reduction::Product, [2.0, -6.0]),
            (Reduction::Max, [2.0, 2.0]),
            (Reduction::Min, [1.0, -3.0]),
        ] {
            let mut sum = bytes(&[1.0, 2.0]);
            reduce(&mut sum, &bytes(&[2.0, -3.0]), Element::F32, op);
            assert_eq!(sum, bytes(&expected));
        }
        let mut sum = vec![200u8];
        reduce(&mut sum, &[100], Element::U8, Reduction::Sum);
        assert_eq!(sum, [44]);
    }
}
