// Runs an AOTInductor package in a process without an interpreter: load_package PACKAGE INPUT OUTPUT LIBRARY...
//
// Opens the libraries in this order, so that the operators of the package are registered, and runs the package on the
// tensor that torch.save wrote to INPUT. OUTPUT is for torch.load.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

int main(int count, char** words) try {
  if (count < 4) throw std::invalid_argument("usage: load_package PACKAGE INPUT OUTPUT LIBRARY...");
  for (int i = 4; i < count; ++i) {
    // Global: libtorch_python takes Python's symbols from the process, as it does not say that it needs libpython.
    if (!dlopen(words[i], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  }
  std::ifstream input(words[2], std::ios::binary);
  const std::vector<char> read{std::istreambuf_iterator<char>(input), {}};
  torch::inductor::AOTIModelPackageLoader package(words[1]);
  const std::vector<at::Tensor> outputs = package.run({torch::jit::pickle_load(read).toTensor()});
  const std::vector<char> written = torch::jit::pickle_save(outputs.at(0));
  std::ofstream(words[3], std::ios::binary).write(written.data(), static_cast<std::streamsize>(written.size()));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
