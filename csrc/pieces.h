// Written by csrc/fit/fit.py --write: the numbers that are looked up in vector registers. Powers of 2, see
// Exp2 in scalar_math.h, and polynomials by pieces of [0, 15), see Gelu in activations.h: a column for each
// piece, in the order of piece_of() in cpu/pack.h, and a row for each power of t, the highest first.
#pragma once
// clang-format off

namespace gelu_ext {

template <int Pieces>
struct Exp2Pieces;
template <int Pieces>
struct GeluPieces;

template <>
struct Exp2Pieces<16> {
  // 2^(i/16)
  alignas(64) static constexpr float powers[16] = {0x1p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fep+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f, 0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f, 0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  // (2^(i/16) - powers[i])/powers[i]
  alignas(64) static constexpr float power_errors[16] = {0x0p+0f, 0x1.8d96d4p-25f, -0x1.9c0c22p-27f, 0x1.964904p-25f, 0x1.125002p-25f, 0x1.370be4p-25f, -0x1.0a355p-25f, -0x1.00d8acp-27f, 0x1.26055cp-26f, -0x1.05cb44p-25f, 0x1.67a1cap-28f, 0x1.a3b5e4p-28f, -0x1.f9c304p-27f, -0x1.6961b4p-28f, -0x1.a5217cp-28f, 0x1.61428ep-28f};
  // (2^r - 1)/r, degree 1 in r on [-0.0312, 0.0312], error 4.3e-07
  static constexpr float low[2] = {0x1.ebfbd4p-3f, 0x1.62e98p-1f};
  // (2^r - 1)/r, degree 2 in r on [-0.0312, 0.0312], error 1.6e-09
  static constexpr float single[3] = {0x1.c6acd8p-5f, 0x1.ebfff4p-3f, 0x1.62e43p-1f};
  // (2^r - 1)/r, relative to itself, degree 3 in r on [-0.0312, 0.0312], error 2.7e-09
  static constexpr float minus_one[4] = {0x1.3b245ap-7f, 0x1.c6ab1ap-5f, 0x1.ebfbep-3f, 0x1.62e43p-1f};
};

template <>
struct Exp2Pieces<8> {
  // 2^(i/8)
  alignas(64) static constexpr float powers[8] = {0x1p+0f, 0x1.172b84p+0f, 0x1.306fep+0f, 0x1.4bfdaep+0f, 0x1.6a09e6p+0f, 0x1.8ace54p+0f, 0x1.ae89fap+0f, 0x1.d5818ep+0f};
  // (2^(i/8) - powers[i])/powers[i]
  alignas(64) static constexpr float power_errors[8] = {0x0p+0f, -0x1.9c0c22p-27f, 0x1.125002p-25f, -0x1.0a355p-25f, 0x1.26055cp-26f, 0x1.67a1cap-28f, -0x1.f9c304p-27f, -0x1.a5217cp-28f};
  // (2^r - 1)/r, degree 2 in r on [-0.0625, 0.0625], error 2.6e-08
  static constexpr float low[3] = {0x1.c690ccp-5f, 0x1.ec0c22p-3f, 0x1.62e432p-1f};
  // (2^r - 1)/r, degree 3 in r on [-0.0625, 0.0625], error 2.0e-10
  static constexpr float single[4] = {0x1.3b2a72p-7f, 0x1.c6b8b6p-5f, 0x1.ebfbep-3f, 0x1.62e43p-1f};
  // (2^r - 1)/r, relative to itself, degree 3 in r on [-0.0625, 0.0625], error 6.3e-09
  static constexpr float minus_one[4] = {0x1.3b2c24p-7f, 0x1.c6b81ap-5f, 0x1.ebfbep-3f, 0x1.62e43p-1f};
};

template <>
struct GeluPieces<16> {
  // t M(t), degree 6 in t - tail_centres, error 1.2e-08
  alignas(64) static constexpr float tail_centres[16] = {0x1.4028p+0f, 0x1.bfc4p+0f, 0x1.1ffp+1f, 0x1.5fe2p+1f, 0x1.bfa8p+1f, 0x1.2027p+2f, 0x1.5fcap+2f, 0x1.a01cp+2f, 0x1.0003p+3f, 0x1.3fdep+3f, 0x1.8016p+3f, 0x1.be470cp+3f, 0x0p+0f, 0x1.7f28p-2f, 0x1.406ap-1f, 0x1.c026p-1f};
  alignas(64) static constexpr float tail[7][16] = {
      {-0x1.443d2cp-10f, -0x1.c1d67cp-12f, -0x1.5356dcp-13f, -0x1.141e62p-14f, -0x1.498b02p-16f, -0x1.377bfp-18f, -0x1.625f9ap-20f, -0x1.d26adp-22f, -0x1.bfd834p-24f, -0x1.5f8e52p-26f, -0x1.65a238p-28f, -0x1.c5033ap-30f, -0x1.4741bp-6f, -0x1.4373d4p-7f, -0x1.58fc24p-8f, -0x1.7a39c8p-9f},
      {0x1.e06e98p-9f, 0x1.6d1ff8p-10f, 0x1.2bfe2p-11f, 0x1.0964d6p-12f, 0x1.65d9d4p-14f, 0x1.854fc6p-16f, 0x1.fce9cap-18f, 0x1.78c4fep-19f, 0x1.ab2c2p-21f, 0x1.95d5aep-23f, 0x1.e3abd4p-25f, 0x1.609376p-26f, 0x1.f1d7f4p-5f, 0x1.98acaap-6f, 0x1.c72d08p-7f, 0x1.059154p-7f},
      {-0x1.440f58p-7f, -0x1.0f53bap-8f, -0x1.e98abap-10f, -0x1.d9934ap-11f, -0x1.643492p-12f, -0x1.c6a324p-14f, -0x1.568e14p-15f, -0x1.20a22p-16f, -0x1.7ba25ep-18f, -0x1.b92156p-20f, -0x1.37b874p-21f, -0x1.065448p-22f, -0x1.0febf8p-3f, -0x1.d31f5p-5f, -0x1.11b26cp-5f, -0x1.4aa52cp-6f},
      {0x1.8f87bep-6f, 0x1.729a46p-7f, 0x1.70ffeep-8f, 0x1.88242p-9f, 0x1.509948p-10f, 0x1.f918fep-12f, 0x1.b75deep-13f, 0x1.a5f1eap-14f, 0x1.49a13cp-15f, 0x1.d1c748p-17f, 0x1.850bb8p-18f, 0x1.78c03ep-19f, 0x1.fffa7ap-3f, 0x1.dcf6eep-4f, 0x1.27463ap-4f, 0x1.78768cp-5f},
      {-0x1.ae705p-5f, -0x1.be96a6p-6f, -0x1.eedd7ep-7f, -0x1.22ee28p-7f, -0x1.1f8efep-8f, -0x1.ffb31ap-10f, -0x1.028aacp-10f, -0x1.1c42e2p-11f, -0x1.091bfep-12f, -0x1.c93c7ep-14f, -0x1.c470d4p-15f, -0x1.f8f13p-16f, -0x1.988446p-2f, -0x1.a1448p-3f, -0x1.1291c2p-3f, -0x1.738db4p-4f},
      {0x1.7b368ap-4f, 0x1.bdae8ep-5f, 0x1.15c952p-5f, 0x1.6ca256p-6f, 0x1.a36464p-7f, 0x1.bf1e82p-8f, 0x1.085062p-8f, 0x1.4e65a8p-9f, 0x1.7616a6p-10f, 0x1.8b647cp-11f, 0x1.d09c74p-12f, 0x1.2b334p-12f, 0x1p-1f, 0x1.228718p-2f, 0x1.99d3eep-3f, 0x1.28a358p-3f},
      {0x1.276e5cp-2f, 0x1.4be258p-2f, 0x1.61ff42p-2f, 0x1.701998p-2f, 0x1.7d1b18p-2f, 0x1.86ca66p-2f, 0x1.8c2808p-2f, 0x1.8f77fcp-2f, 0x1.92698ap-2f, 0x1.948b8ap-2f, 0x1.95bceap-2f, 0x1.967294p-2f, 0x0p+0f, 0x1.230ec6p-3f, 0x1.9e3a3ep-3f, 0x1.f56f54p-3f},
  };
  // M(t) - t phi(0), degree 5 in t - slope_centres, error 6.7e-08
  alignas(64) static constexpr float slope_centres[16] = {0x1.3fcep+0f, 0x1.c064p+0f, 0x1.2031p+1f, 0x1.5fdp+1f, 0x1.c03ap+1f, 0x1.2024p+2f, 0x1.5ff6p+2f, 0x1.a031p+2f, 0x1.002p+3f, 0x1.3ffp+3f, 0x1.7feep+3f, 0x1.be9f66p+3f, 0x1.fdfp-4f, 0x1.809p-2f, 0x1.402ap-1f, 0x1.bfcp-1f};
  alignas(64) static constexpr float slope[6][16] = {
      {-0x1.0af08ap-9f, -0x1.bc1d1ep-11f, -0x1.8fe844p-12f, -0x1.820e5cp-13f, -0x1.27f05p-14f, -0x1.79080ep-16f, -0x1.190cd2p-17f, -0x1.d97fbp-19f, -0x1.3ec19ap-20f, -0x1.6d80f6p-22f, -0x1.01562p-23f, -0x1.acc4c6p-25f, -0x1.4b2f7ap-6f, -0x1.7a6cdp-7f, -0x1.bcab4p-8f, -0x1.0c29c4p-8f},
      {0x1.9405f6p-8f, 0x1.73fb8ep-9f, 0x1.7240bcp-10f, 0x1.8a63fap-11f, 0x1.54506ap-12f, 0x1.fefa64p-14f, 0x1.ba3d02p-15f, 0x1.a85f82p-16f, 0x1.4f4dbap-17f, 0x1.d75978p-19f, 0x1.896e86p-20f, 0x1.79b0d4p-21f, 0x1.8baebp-5f, 0x1.dd32f8p-6f, 0x1.2863fap-6f, 0x1.79f54ep-7f},
      {-0x1.1f723cp-6f, -0x1.28c56p-7f, -0x1.492312p-8f, -0x1.8416f2p-9f, -0x1.7db5eap-10f, -0x1.55111ap-11f, -0x1.580fe6p-12f, -0x1.7aaf26p-13f, -0x1.60a204p-14f, -0x1.306e18p-15f, -0x1.2dfabp-16f, -0x1.4f73bap-17f, -0x1.b08acep-4f, -0x1.1582b2p-4f, -0x1.6e5daep-5f, -0x1.eff998p-6f},
      {0x1.7bcbbp-5f, 0x1.bc963p-6f, 0x1.154b3p-6f, 0x1.6ccadap-7f, 0x1.a216c6p-8f, 0x1.bf2858p-9f, 0x1.07f852p-9f, 0x1.4e3ac8p-10f, 0x1.75a1d2p-11f, 0x1.8b3cdap-12f, 0x1.d16c32p-13f, 0x1.2ad45ep-13f, 0x1.a53482p-3f, 0x1.21f454p-3f, 0x1.9a1854p-4f, 0x1.28ed42p-4f},
      {-0x1.04ddd4p-1f, -0x1.e50388p-2f, -0x1.cef7c4p-2f, -0x1.c0f23ep-2f, -0x1.b3de9cp-2f, -0x1.aa3e88p-2f, -0x1.a4ddb4p-2f, -0x1.a18fb2p-2f, -0x1.9e9d9ep-2f, -0x1.9c7c66p-2f, -0x1.9b4be8p-2f, -0x1.9a94bap-2f, -0x1.7b9484p-1f, -0x1.4f8d9ep-1f, -0x1.310294p-1f, -0x1.1b3746p-1f},
      {-0x1.11f314p-2f, -0x1.06fbd6p-1f, -0x1.7d4204p-1f, -0x1.ee736ap-1f, -0x1.4a6bb8p+0f, -0x1.b61b1ep+0f, -0x1.0fd1cp+1f, -0x1.4464dcp+1f, -0x1.926e76p+1f, -0x1.f97cfcp+1f, -0x1.3037bap+2f, -0x1.628862p+2f, 0x1.9e007ap-2f, 0x1.d64e08p-3f, 0x1.2e6488p-4f, -0x1.1ac33cp-4f},
  };
  // M(t), its two lowest powers apart from the others, degree 6 in t - mills_centres, error 1.2e-08
  alignas(64) static constexpr float mills_centres[16] = {0x1.400ep+0f, 0x1.bfdap+0f, 0x1.1fdep+1f, 0x1.602ep+1f, 0x1.c074p+1f, 0x1.200cp+2f, 0x1.6012p+2f, 0x1.9fecp+2f, 0x1.002dp+3f, 0x1.4011p+3f, 0x1.7fffp+3f, 0x1.be5366p+3f, 0x1.fcdp-4f, 0x1.7fep-2f, 0x1.4076p-1f, 0x1.c056p-1f};
  alignas(64) static constexpr float mills_curve[5][16] = {
      {0x1.3fbb76p-11f, 0x1.e4e554p-13f, 0x1.8eeeeep-14f, 0x1.609f1ap-15f, 0x1.d862aap-17f, 0x1.03298ap-18f, 0x1.50f752p-20f, 0x1.f5f7bp-22f, 0x1.1a9bbap-23f, 0x1.0c6b86p-25f, 0x1.41c188p-27f, 0x1.d42394p-29f, 0x1.f3c1ecp-8f, 0x1.0fa86p-8f, 0x1.2fa4d8p-9f, 0x1.5c9d9ep-10f},
      {-0x1.05f87ep-9f, -0x1.b563f2p-11f, -0x1.8a9ca6p-12f, -0x1.7bc9f6p-13f, -0x1.1fe58p-14f, -0x1.71374p-16f, -0x1.13b262p-17f, -0x1.d28f2ap-19f, -0x1.359c32p-20f, -0x1.65227cp-22f, -0x1.f9042ap-24f, -0x1.a6a72ap-25f, -0x1.47d708p-6f, -0x1.766352p-7f, -0x1.b72ddep-8f, -0x1.091038p-8f},
      {0x1.8fcc1cp-8f, 0x1.726df4p-9f, 0x1.7146bep-10f, 0x1.870b8ep-11f, 0x1.4e671p-12f, 0x1.f9de92p-14f, 0x1.b5dfdp-15f, 0x1.a6cd2p-16f, 0x1.48b018p-17f, 0x1.d06f0cp-19f, 0x1.857f62p-20f, 0x1.788fbp-21f, 0x1.8a8146p-5f, 0x1.dc4facp-6f, 0x1.27394ap-6f, 0x1.78388cp-7f},
      {-0x1.1f1b9ap-6f, -0x1.29982ap-7f, -0x1.4a1b9p-8f, -0x1.82fe98p-9f, -0x1.7d4844p-10f, -0x1.5587b6p-11f, -0x1.57bf2ap-12f, -0x1.7b9ffp-13f, -0x1.6093bap-14f, -0x1.30124ap-15f, -0x1.2ddfe4p-16f, -0x1.507362p-17f, -0x1.b0c792p-4f, -0x1.15d7b4p-4f, -0x1.6e098p-5f, -0x1.ef20aap-6f},
      {0x1.7b6244p-5f, 0x1.bd8832p-6f, 0x1.15ec26p-6f, 0x1.6bf5dcp-7f, 0x1.a19b78p-8f, 0x1.bf8ae4p-9f, 0x1.07bfa6p-9f, 0x1.4ed18p-10f, 0x1.756bbp-11f, 0x1.8ab5a6p-12f, 0x1.d0feeep-13f, 0x1.2b2ed4p-13f, 0x1.a5629ap-3f, 0x1.223c2ap-3f, 0x1.99c71p-4f, 0x1.288086p-4f},
  };
  alignas(64) static constexpr float mills_line[2][16] = {
      {-0x1.c47e64p-4f, -0x1.3274c6p-4f, -0x1.b44f98p-5f, -0x1.42e9acp-5f, -0x1.b5461ep-6f, -0x1.1bcdcep-6f, -0x1.8af442p-7f, -0x1.21c8cp-7f, -0x1.8634eep-8f, -0x1.fbbe7ap-9f, -0x1.63d1b2p-9f, -0x1.08bffcp-9f, -0x1.5ec254p-2f, -0x1.06c8c2p-2f, -0x1.92c4cep-3f, -0x1.3b7d84p-3f},
      {0x1.d88c7ep-3f, 0x1.7b717ap-3f, 0x1.3acad4p-3f, 0x1.0b9c62p-3f, 0x1.b333dp-4f, 0x1.5b4d7cp-4f, 0x1.2011c2p-4f, 0x1.ebbc98p-5f, 0x1.9224c4p-5f, 0x1.4392ap-5f, 0x1.0e7e6ep-5f, 0x1.d24124p-6f, 0x1.d0f504p-2f, 0x1.84bf3cp-2f, 0x1.4aef72p-2f, 0x1.1e61acp-2f},
  };
  // log2(Phi(-t)), degree 3 in t, error 4.8e-06
  alignas(64) static constexpr float log2_upper_tail[4][16] = {
      {-0x1.851e26p-6f, -0x1.14e208p-6f, -0x1.8d5dfap-7f, -0x1.213a48p-7f, -0x1.742456p-8f, -0x1.b47b7ap-9f, -0x1.107b7cp-9f, -0x1.66cfb4p-10f, -0x1.a20c78p-11f, -0x1.c4b4d4p-12f, -0x1.0e6d84p-12f, -0x1.5edc92p-13f, -0x1.91382p-5f, -0x1.5a5422p-5f, -0x1.27ac9p-5f, -0x1.f54da6p-6f},
      {-0x1.03ff2ep-1f, -0x1.13a428p-1f, -0x1.2233dep-1f, -0x1.2ece2ep-1f, -0x1.3dac3ap-1f, -0x1.4bec8p-1f, -0x1.5572bp-1f, -0x1.5bf2ecp-1f, -0x1.623502p-1f, -0x1.6731d4p-1f, -0x1.6a1ad4p-1f, -0x1.6be63cp-1f, -0x1.d6cbc4p-2f, -0x1.dbeb88p-2f, -0x1.e561a8p-2f, -0x1.f20086p-2f},
      {-0x1.1d02p+0f, -0x1.1152cep+0f, -0x1.02d324p+0f, -0x1.e6438ep-1f, -0x1.b8727p-1f, -0x1.7fff86p-1f, -0x1.50b8e8p-1f, -0x1.29ee9ap-1f, -0x1.fa7664p-2f, -0x1.a1b2a8p-2f, -0x1.622d38p-2f, -0x1.33d94p-2f, -0x1.26adp+0f, -0x1.2657fp+0f, -0x1.25272cp+0f, -0x1.22c896p+0f},
      {-0x1.02dbd6p+0f, -0x1.08b42ep+0f, -0x1.125a74p+0f, -0x1.1f66f2p+0f, -0x1.36fc4cp+0f, -0x1.5c596p+0f, -0x1.838694p+0f, -0x1.aa2584p+0f, -0x1.df7316p+0f, -0x1.10b428p+1f, -0x1.2da1p+1f, -0x1.469194p+1f, -0x1.000004p+0f, -0x1.0007a4p+0f, -0x1.003b4cp+0f, -0x1.00d3d8p+0f},
  };
  // 2^-33 G(t), degree 4 in t, error 3.2e-06
  alignas(64) static constexpr float slope_low[5][16] = {
      {0x1.33b47p-42f, 0x1.2b9ab6p-43f, 0x1.3881aap-44f, 0x1.59e25cp-45f, 0x1.3b9f2cp-46f, 0x1.f7bd74p-48f, 0x1.c8b006p-49f, 0x1.c9293p-50f, 0x1.798618p-51f, 0x1.1540aap-52f, 0x1.df1026p-54f, 0x1.d96dc4p-55f, 0x1.07195ap-39f, 0x1.48a208p-40f, 0x1.a522bap-41f, 0x1.145a66p-41f},
      {-0x1.383e2cp-39f, -0x1.88a84p-40f, -0x1.f6c5e2p-41f, -0x1.4a2bep-41f, -0x1.74ead4p-42f, -0x1.764fd4p-43f, -0x1.995548p-44f, -0x1.e01ea6p-45f, -0x1.e3fd5ap-46f, -0x1.b962a4p-47f, -0x1.c7c378p-48f, -0x1.051cbep-48f, -0x1.7a6894p-38f, -0x1.4b0aep-38f, -0x1.1129p-38f, -0x1.b7132p-39f},
      {0x1.213426p-37f, 0x1.c209d2p-38f, 0x1.594996p-38f, 0x1.091368p-38f, 0x1.6cf0aap-39f, 0x1.c827c8p-40f, 0x1.2b164ep-40f, 0x1.997d0ap-41f, 0x1.f562dcp-42f, 0x1.1b3874p-42f, 0x1.5d0022p-43f, 0x1.cf3956p-44f, 0x1.8f494ap-37f, 0x1.864c1p-37f, 0x1.70bb3cp-37f, 0x1.52c476p-37f},
      {-0x1.4c8eaap-36f, -0x1.2cc794p-36f, -0x1.0a254cp-36f, -0x1.d1e27p-37f, -0x1.7d3a44p-37f, -0x1.234ed4p-37f, -0x1.c5159cp-38f, -0x1.67792p-38f, -0x1.09246p-38f, -0x1.7132dcp-39f, -0x1.0e9c5ap-39f, -0x1.9f38a2p-40f, -0x1.69c7fap-36f, -0x1.68fbecp-36f, -0x1.655d92p-36f, -0x1.5de154p-36f},
      {0x1.52e57cp-34f, 0x1.4fedcep-34f, 0x1.4b9edcp-34f, 0x1.46749cp-34f, 0x1.3e4c86p-34f, 0x1.332f7p-34f, 0x1.292656p-34f, 0x1.206ddap-34f, 0x1.15e666p-34f, 0x1.0ab888p-34f, 0x1.02534p-34f, 0x1.f7f4dap-35f, 0x1.54851ap-34f, 0x1.548192p-34f, 0x1.54640ep-34f, 0x1.5409c6p-34f},
  };
  // M(t) - t phi(0), its two lowest powers; the others are mills_curve, error 7.4e-08
  alignas(64) static constexpr float slope_line[2][16] = {
      {-0x1.04d1f6p-1f, -0x1.e52184p-2f, -0x1.cf0e44p-2f, -0x1.c0e184p-2f, -0x1.b3d8aep-2f, -0x1.aa4126p-2f, -0x1.a4dbe6p-2f, -0x1.a19282p-2f, -0x1.9e9d04p-2f, -0x1.9c7b9ap-2f, -0x1.9b4baap-2f, -0x1.9a956ap-2f, -0x1.7ba354p-1f, -0x1.4fa68cp-1f, -0x1.30f35cp-1f, -0x1.1b218ap-1f},
      {-0x1.12758p-2f, -0x1.067918p-1f, -0x1.7cabe6p-1f, -0x1.ef184p-1f, -0x1.4a9d18p+0f, -0x1.b5f328p+0f, -0x1.0fe8c4p+1f, -0x1.442c96p+1f, -0x1.928384p+1f, -0x1.f9b228p+1f, -0x1.304562p+2f, -0x1.624b7p+2f, 0x1.9e35dcp-2f, 0x1.d734c2p-3f, 0x1.2cfa5ep-4f, -0x1.1d5aecp-4f},
  };
};

template <>
struct GeluPieces<8> {
  // t M(t), degree 7 in t - tail_centres, error 1.8e-08
  alignas(64) static constexpr float tail_centres[8] = {0x1.7fc4p+0f, 0x1.3fe2p+1f, 0x1.ff8cp+1f, 0x1.8064p+2f, 0x1.1f8ap+3f, 0x1.9e685ap+3f, 0x0p+0f, 0x1.801cp-1f};
  alignas(64) static constexpr float tail[8][8] = {
      {0x1.e3292ep-13f, 0x1.ccc148p-16f, 0x1.19d85ap-19f, 0x1.0d99d2p-23f, 0x1.8e7fep-28f, 0x1.209c5ap-32f, 0x1.797f14p-8f, 0x1.6696f4p-10f},
      {-0x1.87177p-11f, -0x1.b81d78p-14f, -0x1.4e0d68p-17f, -0x1.9c1b8cp-21f, -0x1.a2ebe4p-25f, -0x1.a0e8a6p-29f, -0x1.873adp-6f, -0x1.01353p-8f},
      {0x1.21beb6p-9f, 0x1.885ab2p-12f, 0x1.650026p-15f, 0x1.2aa60ap-18f, 0x1.8927aap-22f, 0x1.1e4b3cp-25f, 0x1.f9551ep-5f, 0x1.56e766p-7f},
      {-0x1.9f4bd8p-8f, -0x1.51bc68p-10f, -0x1.8a3e3ap-13f, -0x1.b3b4aap-16f, -0x1.8ed94p-19f, -0x1.925436p-22f, -0x1.10175ep-3f, -0x1.a85d58p-6f},
      {0x1.0dc3a8p-6f, 0x1.0b1206p-8f, 0x1.95afcep-11f, 0x1.2b58bep-13f, 0x1.80aa0ep-16f, 0x1.0dbd66p-18f, 0x1.fffb72p-3f, 0x1.d65e38p-5f},
      {-0x1.337f78p-5f, -0x1.78fb9p-7f, -0x1.7a11cap-9f, -0x1.79fac2p-11f, -0x1.56c2e4p-13f, -0x1.50efdap-15f, -0x1.988444p-2f, -0x1.c2a05cp-4f},
      {0x1.208838p-4f, 0x1.bf91dep-6f, 0x1.2e84c4p-7f, 0x1.9fc5f6p-9f, 0x1.0ca59ep-10f, 0x1.73f2bcp-12f, 0x1p-1f, 0x1.5bdf4cp-3f},
      {0x1.3c035ap-2f, 0x1.69c858p-2f, 0x1.82ac2ap-2f, 0x1.8e061cp-2f, 0x1.93a264p-2f, 0x1.961f76p-2f, 0x0p+0f, 0x1.cd3b3cp-3f},
  };
  // M(t) - t phi(0), degree 6 in t - slope_centres, error 1.0e-07
  alignas(64) static constexpr float slope_centres[8] = {0x1.7f4cp+0f, 0x1.4046p+1f, 0x1.001p+2f, 0x1.802cp+2f, 0x1.1fdap+3f, 0x1.9e7026p+3f, 0x1.fe7p-3f, 0x1.80b8p-1f};
  alignas(64) static constexpr float slope[7][8] = {
      {0x1.8f4a9cp-12f, 0x1.0b6704p-14f, 0x1.f8e598p-18f, 0x1.9f7f88p-21f, 0x1.1972e4p-24f, 0x1.8cf37ep-28f, 0x1.72a48ap-8f, 0x1.ce2876p-10f},
      {-0x1.59894ep-10f, -0x1.13d538p-12f, -0x1.4e7dbap-15f, -0x1.6a825cp-18f, -0x1.570bp-21f, -0x1.4e174p-24f, -0x1.f35462p-7f, -0x1.56af46p-8f},
      {0x1.0e73aep-8f, 0x1.09f9ecp-10f, 0x1.936162p-13f, 0x1.2bf462p-15f, 0x1.7e0e66p-18f, 0x1.0d861p-20f, 0x1.31a162p-5f, 0x1.d55406p-7f},
      {-0x1.9acbc2p-7f, -0x1.f4e8ccp-9f, -0x1.f59e32p-11f, -0x1.f8c9c2p-13f, -0x1.c64ee8p-15f, -0x1.c0d18ep-17f, -0x1.59bf9ap-4f, -0x1.2bd7bap-5f},
      {0x1.21189ep-5f, 0x1.be6c22p-7f, 0x1.2dabfp-8f, 0x1.a06ff4p-10f, 0x1.0bdd6ep-11f, 0x1.742868p-13f, 0x1.5cbbbp-3f, 0x1.5b5624p-4f},
      {-0x1.f5273p-2f, -0x1.c72a78p-2f, -0x1.ae5192p-2f, -0x1.a3054ap-2f, -0x1.9d636ep-2f, -0x1.9ae8a2p-2f, -0x1.63a75ep-1f, -0x1.251b0ap-1f},
      {-0x1.90ae04p-2f, -0x1.b6c54ap-1f, -0x1.8073eap+0f, -0x1.2a3c8cp+1f, -0x1.c5bc3ep+1f, -0x1.48b6a8p+2f, 0x1.4261dap-2f, 0x1.d1733p-13f},
  };
  // M(t), its two lowest powers apart from the others, degree 8 in t - mills_centres, error 1.5e-08
  alignas(64) static constexpr float mills_centres[8] = {0x1.7fb4p+0f, 0x1.3ff6p+1f, 0x1.002ap+2f, 0x1.7feap+2f, 0x1.1ffep+3f, 0x1.9e7026p+3f, 0x1.fc9p-3f, 0x1.7f6cp-1f};
  alignas(64) static constexpr float mills_curve[7][8] = {
      {0x1.d45028p-16f, 0x1.c0b23ap-19f, 0x1.0d1ba8p-22f, 0x1.04e15ap-26f, 0x1.79578p-31f, 0x1.166bcep-35f, 0x1.52a5d2p-11f, 0x1.60c0ep-13f},
      {-0x1.bd2054p-14f, -0x1.f4c03ep-17f, -0x1.772288p-20f, -0x1.d881a2p-24f, -0x1.d3db48p-28f, -0x1.d986d6p-32f, -0x1.0383e8p-9f, -0x1.267856p-11f},
      {0x1.83177ap-12f, 0x1.058966p-14f, 0x1.d9e736p-18f, 0x1.91f394p-21f, 0x1.04c272p-24f, 0x1.7e46a6p-28f, 0x1.6f6f9cp-8f, 0x1.cab40ep-10f},
      {-0x1.4c6dfp-10f, -0x1.0df85p-12f, -0x1.39617ep-15f, -0x1.5edbc2p-18f, -0x1.3c9178p-21f, -0x1.41ca02p-24f, -0x1.ed43a4p-7f, -0x1.546b62p-8f},
      {0x1.0ddba6p-8f, 0x1.0adc76p-10f, 0x1.933cap-13f, 0x1.2cf70ep-15f, 0x1.7dc4bep-18f, 0x1.0da278p-20f, 0x1.3234fep-5f, 0x1.d7822ap-7f},
      {-0x1.9a20dep-7f, -0x1.f6513cp-9f, -0x1.f59ecp-11f, -0x1.fa348ap-13f, -0x1.c649e6p-15f, -0x1.c1172ap-17f, -0x1.5a5612p-4f, -0x1.2d0cc8p-5f},
      {0x1.209b78p-5f, 0x1.bf570cp-7f, 0x1.2d5e7p-8f, 0x1.a1301ep-10f, 0x1.0b735ap-11f, 0x1.73f0cp-13f, 0x1.5d3558p-3f, 0x1.5c7a5cp-4f},
  };
  alignas(64) static constexpr float mills_line[2][8] = {
      {-0x1.7215eep-4f, -0x1.75bcdep-5f, -0x1.5c9686p-6f, -0x1.508cap-7f, -0x1.37855ap-8f, -0x1.32547ep-9f, -0x1.2f1c2ep-2f, -0x1.64451ap-3f},
      {0x1.a5a73ep-3f, 0x1.21799ep-3f, 0x1.827b8p-4f, 0x1.09647ap-4f, 0x1.66cf1ap-5f, 0x1.f5ba5p-6f, 0x1.a87a26p-2f, 0x1.33a39ap-2f},
  };
  // log2(Phi(-t)), degree 4 in t, error 3.9e-06
  alignas(64) static constexpr float log2_upper_tail[5][8] = {
      {0x1.c06798p-9f, 0x1.afcbecp-10f, 0x1.31e67ap-11f, 0x1.72b99ap-13f, 0x1.7bac84p-15f, 0x1.865754p-17f, 0x1.b7682p-8f, 0x1.6836bp-8f},
      {-0x1.4d2c74p-5f, -0x1.b8085ep-6f, -0x1.c1b758p-7f, -0x1.85285p-8f, -0x1.2342a6p-9f, -0x1.a9fb14p-11f, -0x1.ac774ep-5f, -0x1.97cb8ep-5f},
      {-0x1.e81444p-2f, -0x1.08f66ep-1f, -0x1.28733ep-1f, -0x1.454bacp-1f, -0x1.599f12p-1f, -0x1.6508d6p-1f, -0x1.d6450ap-2f, -0x1.d861e8p-2f},
      {-0x1.237e7cp+0f, -0x1.158e2ap+0f, -0x1.e8dc5cp-1f, -0x1.8b5276p-1f, -0x1.2a02c2p-1f, -0x1.b28e68p-2f, -0x1.26aea8p+0f, -0x1.267bc6p+0f},
      {-0x1.00e518p+0f, -0x1.07f33ep+0f, -0x1.225a28p+0f, -0x1.5bb88cp+0f, -0x1.b3c8a2p+0f, -0x1.0fcc72p+1f, -0x1p+0f, -0x1.00075cp+0f},
  };
  // 2^-33 G(t), degree 5 in t, error 5.0e-06
  alignas(64) static constexpr float slope_low[6][8] = {
      {-0x1.f31ffep-45f, -0x1.bac6f6p-47f, -0x1.2914b2p-49f, -0x1.686ccep-52f, -0x1.7432acp-55f, -0x1.8c4d5ep-58f, -0x1.3a891ep-41f, -0x1.cd69eep-43f},
      {0x1.56d8bp-41f, 0x1.cf3a48p-43f, 0x1.d927b8p-45f, 0x1.a39ae2p-47f, 0x1.403f12p-49f, 0x1.e6df1ep-52f, 0x1.339244p-39f, 0x1.83ba16p-40f},
      {-0x1.a9e4aap-39f, -0x1.a54b6ap-40f, -0x1.3fc37p-41f, -0x1.9b6cdap-43f, -0x1.cc815cp-45f, -0x1.f39bfp-47f, -0x1.7e8432p-38f, -0x1.473ed2p-38f},
      {0x1.431ec2p-37f, 0x1.b7233ep-38f, 0x1.dd24ecp-39f, 0x1.b6d7c6p-40f, 0x1.6400fp-41f, 0x1.12f266p-42f, 0x1.8f6b8p-37f, 0x1.812496p-37f},
      {-0x1.569a86p-36f, -0x1.24033p-36f, -0x1.ac3d3p-37f, -0x1.11b4b2p-37f, -0x1.3bb56p-38f, -0x1.58c942p-39f, -0x1.69c83ap-36f, -0x1.67d72ap-36f},
      {0x1.537cbap-34f, 0x1.4e777p-34f, 0x1.42387ep-34f, 0x1.2f81ccp-34f, 0x1.1abce8p-34f, 0x1.07cbep-34f, 0x1.54851ap-34f, 0x1.54770cp-34f},
  };
  // M(t) - t phi(0), its two lowest powers; the others are mills_curve, error 1.1e-07
  alignas(64) static constexpr float slope_line[2][8] = {
      {-0x1.f509cep-2f, -0x1.c73becp-2f, -0x1.ae4db2p-2f, -0x1.a308a4p-2f, -0x1.9d623cp-2f, -0x1.9ae8a2p-2f, -0x1.63d04p-1f, -0x1.25537p-1f},
      {-0x1.917996p-2f, -0x1.b6370ap-1f, -0x1.809f9ep+0f, -0x1.2a0688p+1f, -0x1.c5f66p+1f, -0x1.48b6a8p+2f, 0x1.43089ap-2f, 0x1.b67204p-10f},
  };
};

}  // namespace gelu_ext
