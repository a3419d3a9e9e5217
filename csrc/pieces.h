// Written by csrc/fit/fit.py --write: what vector registers look up in one. Powers of 2, see Exp2 in
// scalar_math.h, and polynomials by pieces of [0, 15), see piecewise() there: a column for each piece.
// Coefficients stand highest degree first.
#pragma once
// clang-format off

namespace gelu_ext {

template <int Pieces>
struct Exp2Pieces;
template <int Pieces>
struct GeluErfPieces;

template <>
struct Exp2Pieces<16> {
  alignas(64) static constexpr float powers[16] = {0x1p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fep+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f, 0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f, 0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
  alignas(64) static constexpr float power_errors[16] = {0x0p+0f, 0x1.8d96d4p-25f, -0x1.9c0c22p-27f, 0x1.964904p-25f, 0x1.125002p-25f, 0x1.370be4p-25f, -0x1.0a355p-25f, -0x1.00d8acp-27f, 0x1.26055cp-26f, -0x1.05cb44p-25f, 0x1.67a1cap-28f, 0x1.a3b5e4p-28f, -0x1.f9c304p-27f, -0x1.6961b4p-28f, -0x1.a5217cp-28f, 0x1.61428ep-28f};
  static constexpr float half[2] = {0x1.ebfbd4p-3f, 0x1.62e98p-1f};
  static constexpr float single[3] = {0x1.c6acd8p-5f, 0x1.ebfff4p-3f, 0x1.62e43p-1f};
};

template <>
struct Exp2Pieces<8> {
  alignas(64) static constexpr float powers[8] = {0x1p+0f, 0x1.172b84p+0f, 0x1.306fep+0f, 0x1.4bfdaep+0f, 0x1.6a09e6p+0f, 0x1.8ace54p+0f, 0x1.ae89fap+0f, 0x1.d5818ep+0f};
  alignas(64) static constexpr float power_errors[8] = {0x0p+0f, -0x1.9c0c22p-27f, 0x1.125002p-25f, -0x1.0a355p-25f, 0x1.26055cp-26f, 0x1.67a1cap-28f, -0x1.f9c304p-27f, -0x1.a5217cp-28f};
  static constexpr float half[3] = {0x1.c690ccp-5f, 0x1.ec0c22p-3f, 0x1.62e432p-1f};
  static constexpr float single[4] = {0x1.3b2a72p-7f, 0x1.c6b8b6p-5f, 0x1.ebfbep-3f, 0x1.62e43p-1f};
};

template <>
struct GeluErfPieces<16> {
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
  alignas(64) static constexpr float log2_upper_tail[4][16] = {
      {-0x1.851e26p-6f, -0x1.14e208p-6f, -0x1.8d5dfap-7f, -0x1.213a48p-7f, -0x1.742456p-8f, -0x1.b47b7ap-9f, -0x1.107b7cp-9f, -0x1.66cfb4p-10f, -0x1.a20c78p-11f, -0x1.c4b4d4p-12f, -0x1.0e6d84p-12f, -0x1.5edc92p-13f, -0x1.91382p-5f, -0x1.5a5422p-5f, -0x1.27ac9p-5f, -0x1.f54da6p-6f},
      {-0x1.03ff2ep-1f, -0x1.13a428p-1f, -0x1.2233dep-1f, -0x1.2ece2ep-1f, -0x1.3dac3ap-1f, -0x1.4bec8p-1f, -0x1.5572bp-1f, -0x1.5bf2ecp-1f, -0x1.623502p-1f, -0x1.6731d4p-1f, -0x1.6a1ad4p-1f, -0x1.6be63cp-1f, -0x1.d6cbc4p-2f, -0x1.dbeb88p-2f, -0x1.e561a8p-2f, -0x1.f20086p-2f},
      {-0x1.1d02p+0f, -0x1.1152cep+0f, -0x1.02d324p+0f, -0x1.e6438ep-1f, -0x1.b8727p-1f, -0x1.7fff86p-1f, -0x1.50b8e8p-1f, -0x1.29ee9ap-1f, -0x1.fa7664p-2f, -0x1.a1b2a8p-2f, -0x1.622d38p-2f, -0x1.33d94p-2f, -0x1.26adp+0f, -0x1.2657fp+0f, -0x1.25272cp+0f, -0x1.22c896p+0f},
      {-0x1.02dbd6p+0f, -0x1.08b42ep+0f, -0x1.125a74p+0f, -0x1.1f66f2p+0f, -0x1.36fc4cp+0f, -0x1.5c596p+0f, -0x1.838694p+0f, -0x1.aa2584p+0f, -0x1.df7316p+0f, -0x1.10b428p+1f, -0x1.2da1p+1f, -0x1.469194p+1f, -0x1.000004p+0f, -0x1.0007a4p+0f, -0x1.003b4cp+0f, -0x1.00d3d8p+0f},
  };
  alignas(64) static constexpr float slope_half[5][16] = {
      {0x1.33b47p-42f, 0x1.2b9ab6p-43f, 0x1.3881aap-44f, 0x1.59e25cp-45f, 0x1.3b9f2cp-46f, 0x1.f7bd74p-48f, 0x1.c8b006p-49f, 0x1.c9293p-50f, 0x1.798618p-51f, 0x1.1540aap-52f, 0x1.df1026p-54f, 0x1.d96dc4p-55f, 0x1.07195ap-39f, 0x1.48a208p-40f, 0x1.a522bap-41f, 0x1.145a66p-41f},
      {-0x1.383e2cp-39f, -0x1.88a84p-40f, -0x1.f6c5e2p-41f, -0x1.4a2bep-41f, -0x1.74ead4p-42f, -0x1.764fd4p-43f, -0x1.995548p-44f, -0x1.e01ea6p-45f, -0x1.e3fd5ap-46f, -0x1.b962a4p-47f, -0x1.c7c378p-48f, -0x1.051cbep-48f, -0x1.7a6894p-38f, -0x1.4b0aep-38f, -0x1.1129p-38f, -0x1.b7132p-39f},
      {0x1.213426p-37f, 0x1.c209d2p-38f, 0x1.594996p-38f, 0x1.091368p-38f, 0x1.6cf0aap-39f, 0x1.c827c8p-40f, 0x1.2b164ep-40f, 0x1.997d0ap-41f, 0x1.f562dcp-42f, 0x1.1b3874p-42f, 0x1.5d0022p-43f, 0x1.cf3956p-44f, 0x1.8f494ap-37f, 0x1.864c1p-37f, 0x1.70bb3cp-37f, 0x1.52c476p-37f},
      {-0x1.4c8eaap-36f, -0x1.2cc794p-36f, -0x1.0a254cp-36f, -0x1.d1e27p-37f, -0x1.7d3a44p-37f, -0x1.234ed4p-37f, -0x1.c5159cp-38f, -0x1.67792p-38f, -0x1.09246p-38f, -0x1.7132dcp-39f, -0x1.0e9c5ap-39f, -0x1.9f38a2p-40f, -0x1.69c7fap-36f, -0x1.68fbecp-36f, -0x1.655d92p-36f, -0x1.5de154p-36f},
      {0x1.52e57cp-34f, 0x1.4fedcep-34f, 0x1.4b9edcp-34f, 0x1.46749cp-34f, 0x1.3e4c86p-34f, 0x1.332f7p-34f, 0x1.292656p-34f, 0x1.206ddap-34f, 0x1.15e666p-34f, 0x1.0ab888p-34f, 0x1.02534p-34f, 0x1.f7f4dap-35f, 0x1.54851ap-34f, 0x1.548192p-34f, 0x1.54640ep-34f, 0x1.5409c6p-34f},
  };
  alignas(64) static constexpr float slope_line[2][16] = {
      {-0x1.04d1f6p-1f, -0x1.e52184p-2f, -0x1.cf0e44p-2f, -0x1.c0e184p-2f, -0x1.b3d8aep-2f, -0x1.aa4126p-2f, -0x1.a4dbe6p-2f, -0x1.a19282p-2f, -0x1.9e9d04p-2f, -0x1.9c7b9ap-2f, -0x1.9b4baap-2f, -0x1.9a956ap-2f, -0x1.7ba354p-1f, -0x1.4fa68cp-1f, -0x1.30f35cp-1f, -0x1.1b218ap-1f},
      {-0x1.12758p-2f, -0x1.067918p-1f, -0x1.7cabe6p-1f, -0x1.ef184p-1f, -0x1.4a9d18p+0f, -0x1.b5f328p+0f, -0x1.0fe8c4p+1f, -0x1.442c96p+1f, -0x1.928384p+1f, -0x1.f9b228p+1f, -0x1.304562p+2f, -0x1.624b7p+2f, 0x1.9e35dcp-2f, 0x1.d734c2p-3f, 0x1.2cfa5ep-4f, -0x1.1d5aecp-4f},
  };
};

template <>
struct GeluErfPieces<8> {
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
  alignas(64) static constexpr float log2_upper_tail[5][8] = {
      {0x1.c06798p-9f, 0x1.afcbecp-10f, 0x1.31e67ap-11f, 0x1.72b99ap-13f, 0x1.7bac84p-15f, 0x1.865754p-17f, 0x1.b7682p-8f, 0x1.6836bp-8f},
      {-0x1.4d2c74p-5f, -0x1.b8085ep-6f, -0x1.c1b758p-7f, -0x1.85285p-8f, -0x1.2342a6p-9f, -0x1.a9fb14p-11f, -0x1.ac774ep-5f, -0x1.97cb8ep-5f},
      {-0x1.e81444p-2f, -0x1.08f66ep-1f, -0x1.28733ep-1f, -0x1.454bacp-1f, -0x1.599f12p-1f, -0x1.6508d6p-1f, -0x1.d6450ap-2f, -0x1.d861e8p-2f},
      {-0x1.237e7cp+0f, -0x1.158e2ap+0f, -0x1.e8dc5cp-1f, -0x1.8b5276p-1f, -0x1.2a02c2p-1f, -0x1.b28e68p-2f, -0x1.26aea8p+0f, -0x1.267bc6p+0f},
      {-0x1.00e518p+0f, -0x1.07f33ep+0f, -0x1.225a28p+0f, -0x1.5bb88cp+0f, -0x1.b3c8a2p+0f, -0x1.0fcc72p+1f, -0x1p+0f, -0x1.00075cp+0f},
  };
  alignas(64) static constexpr float slope_half[6][8] = {
      {-0x1.f31ffep-45f, -0x1.bac6f6p-47f, -0x1.2914b2p-49f, -0x1.686ccep-52f, -0x1.7432acp-55f, -0x1.8c4d5ep-58f, -0x1.3a891ep-41f, -0x1.cd69eep-43f},
      {0x1.56d8bp-41f, 0x1.cf3a48p-43f, 0x1.d927b8p-45f, 0x1.a39ae2p-47f, 0x1.403f12p-49f, 0x1.e6df1ep-52f, 0x1.339244p-39f, 0x1.83ba16p-40f},
      {-0x1.a9e4aap-39f, -0x1.a54b6ap-40f, -0x1.3fc37p-41f, -0x1.9b6cdap-43f, -0x1.cc815cp-45f, -0x1.f39bfp-47f, -0x1.7e8432p-38f, -0x1.473ed2p-38f},
      {0x1.431ec2p-37f, 0x1.b7233ep-38f, 0x1.dd24ecp-39f, 0x1.b6d7c6p-40f, 0x1.6400fp-41f, 0x1.12f266p-42f, 0x1.8f6b8p-37f, 0x1.812496p-37f},
      {-0x1.569a86p-36f, -0x1.24033p-36f, -0x1.ac3d3p-37f, -0x1.11b4b2p-37f, -0x1.3bb56p-38f, -0x1.58c942p-39f, -0x1.69c83ap-36f, -0x1.67d72ap-36f},
      {0x1.537cbap-34f, 0x1.4e777p-34f, 0x1.42387ep-34f, 0x1.2f81ccp-34f, 0x1.1abce8p-34f, 0x1.07cbep-34f, 0x1.54851ap-34f, 0x1.54770cp-34f},
  };
  alignas(64) static constexpr float slope_line[2][8] = {
      {-0x1.f509cep-2f, -0x1.c73becp-2f, -0x1.ae4db2p-2f, -0x1.a308a4p-2f, -0x1.9d623cp-2f, -0x1.9ae8a2p-2f, -0x1.63d04p-1f, -0x1.25537p-1f},
      {-0x1.917996p-2f, -0x1.b6370ap-1f, -0x1.809f9ep+0f, -0x1.2a0688p+1f, -0x1.c5f66p+1f, -0x1.48b6a8p+2f, 0x1.43089ap-2f, 0x1.b67204p-10f},
  };
};

}  // namespace gelu_ext
