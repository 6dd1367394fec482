//! The fused operations against burn's own, values and gradients.

use super::*;
use burn::tensor::{Distribution, Tolerance};

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), device)
}

/// Compares a function with one made of burn's operations: its value, with and without autodiff, and its gradients by all
/// inputs, which are [rows, columns] here. `fused` must give the same bits whether it is differentiated or not.
fn check(
    shapes: &[[usize; 2]],
    fused: impl Fn(&[Tensor<2>]) -> Tensor<2>,
    plain: impl Fn(&[Tensor<2>]) -> Tensor<2>,
) {
    let device = Device::flex();
    let inputs: Vec<_> = shapes.iter().map(|shape| random(*shape, &device)).collect();
    let value = fused(&inputs);
    let weights = random(value.dims(), &device);
    let near = |a: Tensor<2>, b: Tensor<2>| {
        a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5))
    };
    near(value.clone(), plain(&inputs));
    let constants: Vec<_> = inputs.iter().map(|input| input.clone().autodiff()).collect();
    fused(&constants).inner().into_data().assert_eq(&value.to_data(), true);
    let gradients = |f: &dyn Fn(&[Tensor<2>]) -> Tensor<2>| {
        let leaves: Vec<_> = inputs.iter().map(|input| input.clone().autodiff().require_grad()).collect();
        let out = f(&leaves);
        let value = out.clone().inner();
        let mut gradients = (out * weights.clone().autodiff()).sum().backward();
        let by: Vec<_> = leaves.iter().map(|leaf| leaf.grad_remove(&mut gradients).unwrap()).collect();
        (value, by)
    };
    let (tracked, found) = gradients(&fused);
    tracked.into_data().assert_eq(&value.into_data(), true);
    for (found, wanted) in found.into_iter().zip(gradients(&plain).1) {
        near(found, wanted);
    }
}

fn vector(table: &Tensor<2>) -> Tensor<1> {
    table.clone().flatten(0, 1)
}

#[test]
fn linear_layers_agree_with_burns() {
    for [m, k, n] in [[1, 1, 1], [13, 40, 33], [70, 300, 65]] {
        check(
            &[[m, k], [k, n], [1, n]],
            |x| fused_linear(x[0].clone(), x[1].clone(), vector(&x[2]), Precision::F32),
            |x| linear(x[0].clone(), x[1].clone(), Some(vector(&x[2]))),
        );
    }
}

#[test]
fn gelu_and_norm_agree_with_burns() {
    check(&[[7, 33]], |x| fused_gelu(x[0].clone() * 3.0), |x| activation::gelu(x[0].clone() * 3.0));
    check(
        &[[70, 37], [70, 37], [1, 37], [1, 37]],
        |x| fused_norm(x[0].clone(), x[1].clone(), vector(&x[2]), vector(&x[3]), 1e-5),
        |x| layer_norm(x[0].clone() + x[1].clone(), vector(&x[2]), Some(vector(&x[3])), 1e-5),
    );
}

#[test]
fn attention_agrees_with_burns_text_by_text() {
    let (heads, hidden) = (3, 24);
    let texts = Texts { lengths: vec![5, 1, 9].into(), width: None };
    let plain = |x: &[Tensor<2>]| {
        let parts = texts.starts().into_iter().zip(texts.lengths.iter()).map(|(start, length)| {
            let part = |i: usize| {
                let rows = x[i].clone().narrow(0, start, *length);
                rows.reshape([1, *length, heads, hidden / heads]).swap_dims(1, 2)
            };
            let options = AttentionModuleOptions::default();
            let context = attention(part(0), part(1), part(2), None, None, options);
            context.swap_dims(1, 2).reshape([*length, hidden])
        });
        Tensor::cat(parts.collect(), 0)
    };
    let fused = |x: &[Tensor<2>]| {
        fused_attention([x[0].clone(), x[1].clone(), x[2].clone()], &texts, heads, Precision::F32)
    };
    check(&[[15, hidden]; 3], fused, plain);
}

/// Compares operations in 16-bit floats with those in 32-bit ones: a linear layer and attention among padded texts, values
/// and gradients by all inputs. `bound` is what they may differ by, `gradients` what the gradients may.
#[track_caller]
fn check_narrow(
    device: &Device,
    operations: impl Fn([Tensor<2>; 3], Precision) -> Tensor<2>,
    precision: Precision,
    [bound, by_gradients]: [f32; 2],
) {
    device.seed(7);
    let inputs = [[12, 24], [24, 24], [1, 24]].map(|shape| random(shape, device));
    let weights = random([12, 24], device).autodiff();
    let run = |precision| {
        let leaves = inputs.clone().map(|input| input.autodiff().require_grad());
        let out = operations(leaves.clone(), precision);
        let value = out.clone().inner();
        let mut gradients = (out * weights.clone()).sum().backward();
        (value, leaves.map(|leaf| leaf.grad_remove(&mut gradients).unwrap()))
    };
    let apart = |a: Tensor<2>, b: Tensor<2>| (a - b).abs().max().into_scalar::<f32>();
    let ((value, by), (exact, by_exact)) = (run(precision), run(Precision::F32));
    let apart_by = by.into_iter().zip(by_exact).map(|(a, b)| apart(a, b)).fold(0.0, f32::max);
    let apart = apart(value, exact);
    assert!(0.0 < apart && apart < bound, "{precision:?}: {apart}");
    assert!(0.0 < apart_by && apart_by < by_gradients, "{precision:?}: gradients {apart_by}");
}

/// Two texts of six rows, one of them padded, behind a linear layer.
fn padded_texts() -> Texts {
    Texts { lengths: vec![6, 4].into(), width: Some(6) }
}

#[test]
fn burns_own_operations_compute_with_bfloat16() {
    let operations = |[x, weight, bias]: [Tensor<2>; 3], precision| {
        let states = plain_linear(x, weight, vector(&bias), precision);
        plain_attention([states.clone(), states.clone(), states], &padded_texts(), 3, precision)
    };
    check_narrow(&Device::flex(), operations, Precision::Bf16, [0.1, 0.3]);
}

#[test]
#[cfg(feature = "tch")]
#[allow(deprecated)]
fn libtorch_computes_with_16_bit_floats() {
    let operations = |[x, weight, bias]: [Tensor<2>; 3], precision| {
        let states = fused_linear(x, weight, vector(&bias), precision);
        fused_attention([states.clone(), states.clone(), states], &padded_texts(), 3, precision)
    };
    check_narrow(&Device::libtorch(), operations, Precision::Bf16, [0.1, 0.3]);
    check_narrow(&Device::libtorch(), operations, Precision::F16, [0.0125, 0.04]);
}

#[test]
fn means_agree_with_burns() {
    let texts = Texts { lengths: vec![2, 5, 1].into(), width: None };
    let plain = |x: &[Tensor<2>]| {
        let starts = texts.starts().into_iter().zip(texts.lengths.iter());
        Tensor::cat(
            starts.map(|(start, length)| x[0].clone().narrow(0, start, *length).mean_dim(0)).collect(),
            0,
        )
    };
    check(&[[8, 7]], |x| fused_mean(x[0].clone(), &texts), plain);
}

#[test]
fn shared_and_strided_inputs_are_left_as_they_are() {
    let device = Device::flex();
    let x = random([6, 8], &device);
    let before = x.to_data();
    let turned = x.clone().transpose();
    let whole = Tensor::<2>::from_data(turned.to_data(), &device);
    fused_gelu(turned).into_data().assert_eq(&fused_gelu(whole).into_data(), true);
    let ones = Tensor::<1>::ones([8], &device);
    let normed = fused_norm(x.clone(), x.clone(), ones.clone(), ones, 1e-5);
    assert_eq!(normed.dims(), [6, 8]);
    // A part of a larger tensor must not be taken for the whole of its memory.
    let part = x.clone().narrow(0, 2, 3);
    let alone = Tensor::<2>::from_data(part.to_data(), &device);
    fused_gelu(part).into_data().assert_eq(&fused_gelu(alone).into_data(), true);
    x.into_data().assert_eq(&before, true);
}
