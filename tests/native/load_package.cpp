// Runs an AOTInductor package without Python: load_package PACKAGE INPUT OUTPUT LIBRARY...
//
// Opens the libraries in the order given, so that the operators of the package are registered, and runs the package on
// the tensor that torch.save wrote to INPUT; OUTPUT is for torch.load.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

int main(int count, char** words) {
  if (count < 4) return 2;
  for (int i = 4; i < count; ++i) {
    // Global: a Python module takes libpython's symbols from the process and does not name the library.
    if (!dlopen(words[i], RTLD_NOW | RTLD_GLOBAL)) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
  }
  std::ifstream input(words[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(input), {}};
  torch::inductor::AOTIModelPackageLoader package(words[1]);
  const std::vector<at::Tensor> outputs = package.run({torch::jit::pickle_load(bytes).toTensor()});
  const std::vector<char> result = torch::jit::pickle_save(outputs.at(0));
  std::ofstream(words[3], std::ios::binary).write(result.data(), result.size());
}
