package main

import "github.com/spf13/cobra"

func (a *app) benchCommand() *cobra.Command {
	return &cobra.Command{Use: "bench", Run: func(*cobra.Command, []string) {}}
}
func (a *app) benchEchoCommand() *cobra.Command {
	return &cobra.Command{Use: "bench-echo", Hidden: true, Run: func(*cobra.Command, []string) {}}
}
