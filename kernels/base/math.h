// Elementary functions with one formula for every backend and instruction set (ruling 6): range
// reduction and a polynomial in explicit fma, so that vector code repeats them bit for bit.
#ifndef KVERN_KERNELS_BASE_MATH_H_
#define KVERN_KERNELS_BASE_MATH_H_

namespace kvern {

// e^x within 2 ulp; 0 below -708, infinity above 709, NaN for NaN.
double Exp(double x);
// ln x within 2 ulp for normal x > 0; -infinity for 0 and subnormals, NaN below 0 and for NaN.
double Log(double x);
// sin and cos within 1e-15 absolute for |x| < 2^24.
void SinCos(double x, double* sine, double* cosine);

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_MATH_H_
