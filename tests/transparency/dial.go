// SPDX-License-Identifier: MIT

// dial HOST PORT CLOSED_PORT: connects as Go does, many at once, and prints what it saw.
// Built without cgo it is a static program that makes its system calls itself.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"
)

func echo(address string) string {
	c, err := net.DialTimeout("tcp", address, 30*time.Second)
	if err != nil {
		var number syscall.Errno
		if errors.As(err, &number) {
			return fmt.Sprintf("errno %d", int(number))
		}
		return err.Error()
	}
	defer c.Close()
	if _, err = c.Write([]byte("echo\ngo there")); err != nil {
		return err.Error()
	}
	c.(*net.TCPConn).CloseWrite()
	back, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	host, _, _ := net.SplitHostPort(c.LocalAddr().String())
	return fmt.Sprintf("%q from %s to %s", back, host, c.RemoteAddr())
}

func main() {
	if len(os.Args) != 4 {
		os.Exit(2)
	}
	open := net.JoinHostPort(os.Args[1], os.Args[2])
	closed := net.JoinHostPort(os.Args[1], os.Args[3])
	results := make([]string, 40)
	var all sync.WaitGroup
	for i := range results {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			if i%2 == 0 {
				results[i] = echo(open)
			} else {
				results[i] = echo(closed)
			}
		}(i)
	}
	all.Wait()
	sort.Strings(results)
	for i, result := range results {
		if i == 0 || results[i-1] != result {
			fmt.Println(result)
		}
	}
}
